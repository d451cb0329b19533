"""Own data: chat records, as training reads them, as things to ask and to draw (`records`), and their scores
(`scoring`). The suite is `suites.own`."""
