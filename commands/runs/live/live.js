// Exchanges the sections of the report that changed, and leaves the reader where they are: the
// place on the screen, the focus, what is typed, and which details are open.
(() => {
  "use strict";

  const elements = (root) => [root, ...root.querySelectorAll("*")];
  const label = (details) => details.id || details.querySelector("summary")?.textContent || "";

  // What a reader did inside a section, by the place of each element in it.
  function remember(section) {
    const all = elements(section);
    const counts = new Map();
    const open = new Map();
    for (const details of section.querySelectorAll("details")) {
      const name = label(details);
      const count = counts.get(name) || 0;
      counts.set(name, count + 1);
      open.set(`${count} ${name}`, details.open);
    }
    const scrolled = [];
    const typed = [];
    all.forEach((element, at) => {
      if (element.scrollLeft || element.scrollTop) {
        scrolled.push([at, element.tagName, element.scrollLeft, element.scrollTop]);
      }
      if (element.matches("input, select, textarea")) {
        typed.push([at, element.tagName, element.value, element.checked]);
      }
    });
    const focus = all.indexOf(document.activeElement);
    const tag = focus < 0 ? "" : document.activeElement.tagName;
    const crosses = [...section.querySelectorAll(".plot")].map((plot) => {
      const cross = plot.querySelector(".cross");
      return cross && !cross.hidden ? parseFloat(cross.style.left) / 100 : null;
    });
    return { open, scrolled, typed, focus, tag, crosses };
  }

  function restore(section, before) {
    const all = elements(section);
    const counts = new Map();
    for (const details of section.querySelectorAll("details")) {
      const name = label(details);
      const count = counts.get(name) || 0;
      counts.set(name, count + 1);
      const key = `${count} ${name}`;
      if (before.open.has(key)) details.open = before.open.get(key);
    }
    for (const [at, tag, value, checked] of before.typed) {
      if (all[at]?.tagName === tag) Object.assign(all[at], { value, checked });
    }
    for (const [at, tag, left, top] of before.scrolled) {
      if (all[at]?.tagName === tag) all[at].scrollTo(left, top);
    }
    if (before.focus >= 0 && all[before.focus]?.tagName === before.tag) {
      all[before.focus].focus({ preventScroll: true });
    }
    // The values that a chart shows under its cross line are shown by its new drawing, too.
    [...section.querySelectorAll(".plot")].forEach((plot, at) => {
      const share = before.crosses[at];
      if (share === null || share === undefined) return;
      const box = plot.getBoundingClientRect();
      const place = { clientX: box.left + share * box.width, clientY: box.top, bubbles: true };
      plot.dispatchEvent(new PointerEvent("pointermove", place));
    });
  }

  // The HTML comes from the builder of the page, which escapes every text; a parsed script
  // would not run.
  function parsed(html) {
    return new DOMParser().parseFromString(html, "text/html").body.firstElementChild;
  }

  function exchange(message) {
    const { order, sections } = message;
    const shown = [...document.querySelectorAll("section[id]")];
    const top = (element) => element.getBoundingClientRect().top;
    const reading = shown.find((element) => element.getBoundingClientRect().bottom > 0);
    const place = reading ? top(reading) : 0;
    let last = null;
    for (const id of order) {
      const old = document.getElementById(id);
      if (!(id in sections)) {
        last = old || last;
        continue;
      }
      const made = parsed(sections[id]);
      if (!made) continue;
      if (old) {
        const before = remember(old);
        old.replaceWith(made);
        restore(made, before);
      } else if (last) {
        last.after(made);
      } else if (shown[0]) {
        shown[0].before(made);
      } else {
        (document.querySelector("main") || document.body).append(made);
      }
      last = made;
    }
    for (const section of shown) {
      if (section.isConnected && !order.includes(section.id)) section.remove();
    }
    const now = reading && document.getElementById(reading.id);
    if (now && window.scrollY > 0) window.scrollBy(0, top(now) - place);
    document.documentElement.dataset.version = message.version;
  }

  function connect() {
    document.documentElement.style.overflowAnchor = "none";
    const version = document.querySelector('meta[name="qft-version"]').content;
    document.documentElement.dataset.version = version;
    const source = new EventSource(`events?since=${version}`);
    const name = document.title;
    const take = (event, ended) => {
      exchange(JSON.parse(event.data));
      document.documentElement.dataset.state = ended ? "ended" : "live";
      document.title = name;
    };
    source.addEventListener("sections", (event) => take(event, false));
    source.addEventListener("end", (event) => take(event, true));
    source.addEventListener("error", () => {
      document.documentElement.dataset.state = "lost";
      document.title = `(no connection) ${name}`;
    });
    source.addEventListener("open", () => {
      document.documentElement.dataset.state = "live";
      document.title = name;
    });
  }

  document.addEventListener("DOMContentLoaded", connect);
})();
