// Decisions that are made and not yet saved. Each lies in localStorage under its own name before the page goes on, and leaves it when
// the server has said that it is committed. Any tab of the page sends all of them; an idempotency key makes that harmless.

const RETRY_MS = [500, 1000, 2000, 4000, 8000];

export class Outbox {
  constructor(scope, changed, closed) {
    this.prefix = `winnow:${scope}:`;
    this.changed = changed; // called with {unsaved, offline, refused, saved keys}
    this.closed = closed; // called when the server no longer knows this browser
    this.refused = {};
    this.failures = 0;
    this.sending = false;
    this.last = 0;
    this.timer = 0;
    addEventListener("online", () => this.send());
    addEventListener("storage", () => this.tell([]));
  }

  put(decision) {
    // Ascending even if the clock stands still or goes back: an undo must follow what it takes back.
    this.last = Math.max(Date.now() * 1000, this.last + 1);
    localStorage.setItem(this.prefix + decision.key, JSON.stringify({ order: this.last, decision }));
    this.tell([]);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), 0);
  }

  entries() {
    const found = [];
    for (let i = 0; i < localStorage.length; i++) {
      const name = localStorage.key(i);
      if (name.startsWith(this.prefix)) found.push(JSON.parse(localStorage.getItem(name)));
    }
    return found.sort((one, other) => one.order - other.order).map((entry) => entry.decision);
  }

  async send() {
    if (this.sending) return;
    this.sending = true;
    clearTimeout(this.timer);
    try {
      for (let batch = this.entries().slice(0, 100); batch.length; batch = this.entries().slice(0, 100)) {
        const answer = await fetch("/api/decisions", {
          method: "POST",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ decisions: batch }),
        });
        if (answer.status === 401) return this.closed();
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        const { saved, refused } = await answer.json();
        for (const key of [...saved, ...Object.keys(refused)]) localStorage.removeItem(this.prefix + key);
        Object.assign(this.refused, refused);
        this.failures = 0;
        this.tell(saved);
      }
    } catch {
      // The server or the network is away. Nothing is lost: the decisions lie here until it is back.
      this.timer = setTimeout(() => this.send(), RETRY_MS[Math.min(this.failures++, RETRY_MS.length - 1)]);
      this.tell([]);
    } finally {
      this.sending = false;
    }
  }

  tell(saved) {
    this.changed({ unsaved: this.entries().length, offline: this.failures > 0, refused: Object.keys(this.refused).length, saved });
  }
}
