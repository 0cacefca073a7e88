// Pictures are fetched and decoded ahead, so that showing the next one takes no longer than drawing it.

export class Pictures {
  constructor(sizePx) {
    this.sizePx = sizePx;
    this.loaded = new Map(); // item/side -> {image, ready, error}
  }

  get(item, side) {
    const name = `${item}/${side}`;
    if (!this.loaded.has(name)) this.loaded.set(name, this.load(name, this.sizePx));
    return this.loaded.get(name);
  }

  load(name, size) {
    const picture = { image: new Image(), done: false, error: "" };
    picture.image.alt = "";
    picture.image.draggable = false;
    picture.ready = (async () => {
      for (let tries = 0; ; tries++) {
        try {
          const answer = await fetch(`/picture/${name}?size=${size}`);
          if (answer.status === 404) picture.error = (await answer.json()).why;
          else if (!answer.ok) throw new Error(`status ${answer.status}`);
          else {
            picture.url = URL.createObjectURL(await answer.blob());
            picture.image.src = picture.url;
            await picture.image.decode();
          }
          break;
        } catch (problem) {
          if (problem.name === "EncodingError") { picture.error = "the browser cannot decode it"; break; }
          if (picture.dropped) return picture;
          await new Promise((wake) => setTimeout(wake, Math.min(8000, 500 * 2 ** tries)));
        }
      }
      picture.done = true;
      return picture;
    })();
    return picture;
  }

  // The same picture in as many pixels as the server gives, for zooming.
  async sharpen(item, side) {
    const fine = this.load(`${item}/${side}`, 2 * this.sizePx);
    await fine.ready;
    const picture = this.get(item, side);
    if (fine.error || picture.dropped) return;
    const old = picture.url;
    picture.url = picture.image.src = fine.url;
    if (old) URL.revokeObjectURL(old);
  }

  // Keeps these items and forgets the rest.
  keep(items) {
    for (const [name, picture] of this.loaded) {
      if (!items.has(name.split("/")[0])) {
        picture.dropped = true;
        if (picture.url) URL.revokeObjectURL(picture.url);
        this.loaded.delete(name);
      }
    }
  }
}
