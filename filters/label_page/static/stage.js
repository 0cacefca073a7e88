// The pictures that are looked at: one, two side by side, or a grid.

import { make } from "./dom.js";
import { MARKS } from "./answers.js";

export class Stage {
  constructor(element, pictures, session, moved) {
    Object.assign(this, { element, pictures, session, moved });
    this.tiles = [];
    this.focused = 0;
    this.revealed = false;
    element.classList.toggle("blurred", session.blurred);
    element.addEventListener("mouseover", (event) => { if (event.target.tagName === "IMG") this.seen(event.target); });
    element.addEventListener("mousemove", (event) => this.look(event));
  }

  // Shows an item; returns a promise that is settled when its pictures are there.
  show(item) {
    this.reset();
    const sides = item.sides ?? ["one"];
    const loading = sides.map((side, number) => this.figure(item, side, sides.length > 1 ? ["Left", "Right"][number] : ""));
    this.element.className = `${sides.length > 1 ? "two" : "one"}${this.session.blurred ? " blurred" : ""}`;
    this.element.replaceChildren(...loading.map(({ figure }) => figure));
    return Promise.all(loading.map(({ ready }) => ready));
  }

  figure(item, side, name) {
    const picture = this.pictures.get(item.item, side);
    const figure = make("figure", {}, name ? make("figcaption", {}, name) : null);
    const place = () => {
      picture.image.alt = picture.error ? "" : this.session.mode === "triage" ? "image of the grid" : `image to be judged${name ? `, ${name.toLowerCase()}` : ""}`;
      figure.prepend(picture.error ? make("p", { className: "broken" }, `This picture cannot be shown: ${picture.error}. Skip it.`) : picture.image);
    };
    if (picture.done) place();
    else figure.append(make("p", { className: "loading" }, "loading"));
    const ready = picture.done ? Promise.resolve() : picture.ready.then(() => { figure.querySelector(".loading")?.remove(); place(); });
    return { figure, ready, picture };
  }

  showGrid(items) {
    this.reset();
    this.element.className = `grid${this.session.blurred ? " blurred" : ""}`;
    this.tiles = items.map((item, number) => {
      const { figure } = this.figure(item, "one", "");
      const tile = make("button", { type: "button", className: "tile", onclick: () => { this.focus(number); this.mark({ undefined: "yes", yes: "no", no: undefined }[this.tiles[number].mark]); } }, figure);
      return { item, tile, mark: undefined };
    });
    this.element.replaceChildren(...this.tiles.map(({ tile }) => tile));
    this.focus(0);
    return Promise.resolve();
  }

  focus(number) {
    this.focused = Math.max(0, Math.min(this.tiles.length - 1, number));
    this.tiles.forEach(({ tile }, i) => tile.classList.toggle("focused", i === this.focused));
    this.tiles[this.focused]?.tile.focus({ preventScroll: true });
  }

  step(key) {
    const columns = getComputedStyle(this.element).gridTemplateColumns.split(" ").length;
    this.focus(this.focused + { arrowleft: -1, arrowright: 1, arrowup: -columns, arrowdown: columns }[key]);
  }

  mark(mark, onward = false) {
    const entry = this.tiles[this.focused];
    if (!entry) return;
    this.paint(entry, mark);
    if (onward) this.focus(this.focused + 1);
  }

  markRest(mark) {
    for (const entry of this.tiles) if (!entry.mark) this.paint(entry, mark);
  }

  paint(entry, mark) {
    entry.mark = mark;
    entry.tile.classList.toggle("yes", mark === "yes");
    entry.tile.classList.toggle("no", mark === "no");
    entry.tile.dataset.mark = mark ? MARKS[mark] : "";
    entry.tile.setAttribute("aria-label", mark ? `marked ${mark === "yes" ? "drop" : "keep"}` : "no mark");
  }

  reset() {
    this.tiles = [];
    this.revealed = this.zoomedOnce = this.flagged = false;
    this.element.classList.remove("zoomed", "revealed", "flagged", "covered");
    this.element.scrollTo(0, 0);
  }

  clear() {
    this.reset();
    this.element.replaceChildren();
  }

  seen() {
    if (this.session.blurred && !this.revealed && !this.element.classList.contains("covered")) this.revealed = true;
  }

  toggleBlur() {
    if (!this.session.blurred) return;
    if (this.element.classList.toggle("revealed")) this.revealed = true;
  }

  toggleFlag() {
    this.flagged = this.element.classList.toggle("flagged");
    return this.flagged;
  }

  zoom(item) {
    if (this.tiles.length) return;
    if (this.element.classList.toggle("zoomed")) {
      this.zoomedOnce = true;
      for (const side of item.sides ?? ["one"]) this.pictures.sharpen(item.item, side);
      for (const figure of this.element.querySelectorAll("figure")) figure.scrollTo((figure.scrollWidth - figure.clientWidth) / 2, (figure.scrollHeight - figure.clientHeight) / 2);
    }
  }

  // Zoomed in, every figure shows what lies where the mouse is.
  look(event) {
    if (!this.element.classList.contains("zoomed")) return;
    const figure = event.target.closest("figure");
    if (!figure) return;
    const box = figure.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    for (const each of this.element.querySelectorAll("figure")) each.scrollTo(x * (each.scrollWidth - each.clientWidth), y * (each.scrollHeight - each.clientHeight));
  }

  scroll(key) {
    const [x, y] = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] }[key];
    for (const figure of this.element.querySelectorAll("figure")) figure.scrollBy({ left: 120 * x, top: 120 * y });
  }

  // How the image was seen, for the record.
  how() {
    return { blur: this.session.blurred ? (this.revealed ? "revealed" : "blurred") : "off", zoomed: Boolean(this.zoomedOnce), flagged: Boolean(this.flagged) };
  }
}
