// Search runs in a worker, and browsers start none on pages that are opened from a disk (file://). There it runs in a
// hidden frame instead: same script, same messages.
if (window.location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []  // messages that come before the script is there
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const room = (this.room = frame.contentWindow)
      room.document.open()
      room.document.write("<!doctype html><title>search</title>")
      room.document.close()
      room.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
      room.importScripts = (...urls) =>
        urls.reduce((before, each) => before.then(() => load(room, each)), Promise.resolve())
      load(room, url).then(() => {
        this.ready = true
        this.waiting.forEach((data) => this.postMessage(data))
      }, () => this.dispatchEvent(new Event("error")))
    }
    postMessage(data) {
      if (!this.ready) this.waiting.push(data)
      else this.room.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {}
  }
  const load = (room, url) =>
    new Promise((done, failed) => {
      const script = room.document.createElement("script")
      script.onload = done
      script.onerror = failed
      script.src = url
      room.document.body.appendChild(script)
    })
}
