"use strict";
{
  const video = document.querySelector("video");
  const chartData = document.getElementById("charts");
  const emotions = [...document.querySelectorAll("[data-emotion]")].map((chip) => chip.dataset.emotion);
  let showTime = () => {};

  function jump(seconds) {
    showTime(seconds);
    if (video) video.currentTime = seconds;
  }

  for (const button of document.querySelectorAll("[data-seek]"))
    button.addEventListener("click", () => jump(Number(button.dataset.seek)));

  if (video)
    video.addEventListener("error", () => {
      video.hidden = true;
      document.getElementById("video-note").textContent = "The annotated video is not beside this page.";
    });

  if (chartData) {
    const { document: charts, roots, lanes } = JSON.parse(chartData.textContent);
    const elements = Object.fromEntries(roots.map(({ id, element }) => [id, element]));
    const item = { docid: "report", roots: elements, root_ids: Object.keys(elements), use_for_title: false };
    Bokeh.embed.embed_items({ report: charts }, [item]).then(() => connect(Bokeh.documents[0].roots(), lanes));
  }

  function connect(figures, lanes) {
    const window_ = figures[figures.length - 1].x_range; // All charts but the overview share it.
    const rows = Object.fromEntries(Object.entries(lanes).map(([name, encoded]) => [name, decodeRows(encoded)]));
    const drawn = figures.filter((figure) => figure.name in rows);
    const bands = figures.find((figure) => figure.name === "events");
    const redraw = oncePerFrame(() => {
      drawn.forEach((figure) => drawLane(figure, rows[figure.name], window_, drawn.length > 4 ? 160 : 320));
      if (bands) nameBands(bands, window_);
    });
    for (const property of [window_.properties.start, window_.properties.end]) property.change.connect(redraw);
    addEventListener("resize", redraw);
    redraw();
    fitCharts(figures);

    for (const figure of figures) figure.on_event("tap", (event) => jump(event.x / 1000));
    connectTime(figures, rows);
    connectZoom(figures, window_);
    connectLegend(figures.filter((figure) => figure.name !== "quality" && figure.name !== "events"));
    document.documentElement.dataset.charts = String(figures.length);
  }

  // --- rows: the page holds more than a chart can show at once ---------------------------------

  function decodeRows(encoded) {
    const types = { x: Float64Array, frame: Int32Array, flags: Uint8Array };
    const decode = ([name, text]) => {
      const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
      return [name, new (types[name] ?? Uint16Array)(bytes.buffer)];
    };
    return Object.fromEntries(Object.entries(encoded).map(decode));
  }

  /* Gives a chart the rows of a window of time. Of more rows than there is room for, those stay
     that hold the greatest value of an emotion in one of n_parts of the window, and the ends of
     absences. */
  function drawLane(figure, columns, { start, end }, n_parts) {
    const { x, frame, flags } = columns;
    const first = Math.max(findRow(x, start) - 1, 0);
    const last = Math.min(findRow(x, end) + 2, x.length);
    let rows = Array.from({ length: last - first }, (_, i) => first + i);
    // An absence is two rows; one of less than a pixel cannot be seen.
    const isSeen = (row) => frame[row] < 0 && x[frame[row + 1] < 0 ? row + 1 : row] - x[frame[row - 1] < 0 ? row - 1 : row] > (end - start) / 1500;
    if (rows.length > emotions.length * n_parts) {
      const best = Array.from({ length: n_parts }, () => new Int32Array(emotions.length).fill(-1));
      const kept = new Set([first, last - 1]);
      for (const row of rows) {
        if (isSeen(row)) for (const near of [row - 1, row, row + 1]) kept.add(Math.min(Math.max(near, first), last - 1));
        const part = best[Math.min(Math.max(Math.floor(((x[row] - start) / (end - start)) * n_parts), 0), n_parts - 1)];
        emotions.forEach((name, i) => {
          if (part[i] < 0 || columns[name][row] > columns[name][part[i]]) part[i] = row;
        });
      }
      for (const part of best) for (const row of part) if (row >= 0) kept.add(row);
      rows = [...kept].sort((a, b) => a - b);
    }
    const data = {
      x: rows.map((row) => x[row]),
      label: rows.map((row) => (frame[row] < 0 ? "not on screen" : `${formatClock(x[row] / 1000)}, frame ${frame[row]}`)),
      doubt: rows.map((row) => describeDoubts(flags[row])),
    };
    for (const name of emotions) data[name] = rows.map((row) => columns[name][row] / 65535);
    figure.renderers.find((renderer) => renderer.name === "hover").data_source.data = data;
  }

  /* Writes as much of its name into the visible part of each band as there is room for. */
  function nameBands(figure, { start, end }) {
    const source = figure.renderers.find((renderer) => renderer.name === "event").data_source;
    const { left, right, name } = source.data;
    const width = elementOf(figure).clientWidth - figure.min_border_left - figure.min_border_right;
    const label_at = Array.from(left, (time) => Math.max(time, start));
    const label = Array.from(name, (text, i) => {
      const n_letters = Math.floor(((Math.min(right[i], end) - label_at[i]) / (end - start) * width - 6) / 6.5);
      const letters = [...text];
      return letters.length <= n_letters ? text : n_letters > 2 ? `${letters.slice(0, n_letters - 1).join("")}…` : "";
    });
    source.data = { ...source.data, label_at, label };
  }

  function elementOf(figure) {
    return document.getElementById(`chart-${figure.name}`);
  }

  /* Charts are as wide as the window: they are told how much smaller they are on paper, and names of
     emotions lie aslant where they stand too close. */
  function fitCharts(figures) {
    const paper = 680; // px of what a sheet of A4 has between its margins
    const fit = () => {
      for (const figure of figures) {
        const element = elementOf(figure), width = element.clientWidth;
        element.style.setProperty("--on-paper", Math.min(1, paper / width));
        if (figure.name.startsWith("comparison")) figure.below[0].major_label_orientation = width < 480 ? 0.8 : "horizontal";
      }
    };
    addEventListener("resize", oncePerFrame(fit));
    fit();
  }

  function findRow(values, wanted) {
    let low = 0, high = values.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (values[middle] < wanted) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function describeDoubts(flags) {
    const doubts = ["no face", "small", "blurred", "turned away", "uncertain"];
    return doubts.filter((_, bit) => (flags >> bit) & 1).join(", ");
  }

  function formatClock(seconds) {
    const ticks = Math.round(seconds * 100);
    const two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(ticks / 360000), minutes = Math.floor(ticks / 6000) % 60;
    const tail = `${two(Math.floor(ticks / 100) % 60)}.${two(ticks % 100)}`;
    return hours ? `${hours}:${two(minutes)}:${tail}` : `${minutes}:${tail}`;
  }

  function oncePerFrame(action) {
    let waiting = false;
    return () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        action();
      });
    };
  }

  // --- what the reader does ---------------------------------------------------------------------

  /* Shows the time of the video in every chart, and beneath it what each face shows then. */
  function connectTime(figures, rows) {
    const cursors = figures.flatMap((figure) => figure.center.filter((model) => model.type === "Span"));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const paint = () => cursors.forEach((cursor) => (cursor.line_color = dark.matches ? "white" : "black"));
    dark.addEventListener("change", paint);
    paint();
    const now = document.getElementById("now");
    showTime = (seconds) => {
      for (const cursor of cursors) cursor.setv({ location: 1000 * seconds, visible: true });
      if (!now) return;
      now.hidden = false;
      for (const item of now.children) {
        const columns = rows[item.dataset.lane];
        const row = Math.max(findRow(columns.x, 1000 * seconds + 1) - 1, 0);
        const values = emotions.map((name) => columns[name][row] / 65535);
        const top = values.indexOf(Math.max(...values));
        const isHere = columns.frame[row] >= 0 && columns.x[row] <= 1000 * seconds + 1;
        [...item.children[1].children].forEach((part, i) => (part.style.flexGrow = isHere ? values[i] : 0));
        const mark = describeDoubts(columns.flags[row]).includes("uncertain") ? "?" : "";
        item.children[2].textContent = isHere ? `${emotions[top]}${mark} ${Math.round(100 * values[top])}%` : "not on screen";
      }
    };
    if (!video) return;
    for (const kind of ["timeupdate", "seeked"]) video.addEventListener(kind, () => showTime(video.currentTime));
    setInterval(() => video.paused || showTime(video.currentTime), 100);
  }

  function connectZoom(figures, window_) {
    const [first, last] = [window_.start, window_.end];
    const zoom = (factor) => {
      const middle = (window_.start + window_.end) / 2;
      const length = Math.min(Math.max((window_.end - window_.start) * factor, window_.min_interval), last - first);
      const start = Math.min(Math.max(middle - length / 2, first), last - length);
      window_.setv({ start, end: start + length });
    };
    const factors = { in: 0.5, out: 2, all: Infinity };
    for (const button of document.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", () => zoom(factors[button.dataset.zoom]));
    for (const figure of figures) figure.on_event("doubletap", () => zoom(Infinity));
  }

  /* The pressed emotions stand out; while none is pressed, all do. */
  function connectLegend(figures) {
    const chips = [...document.querySelectorAll("[data-emotion]")];
    const isPressed = (chip) => chip.getAttribute("aria-pressed") === "true";
    const show = () => {
      const pressed = chips.filter(isPressed).map((chip) => chip.dataset.emotion);
      for (const { glyph, name } of figures.flatMap((figure) => figure.renderers)) {
        const stands_out = !pressed.length || pressed.includes(name);
        if (name !== "hover") glyph.fill_alpha = { value: stands_out ? 1 : 0.12 };
        if (name !== "hover" && "line_alpha" in glyph) glyph.line_alpha = { value: stands_out ? 1 : 0 };
      }
    };
    for (const chip of chips)
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(!isPressed(chip)));
        show();
      });
  }

  // --- pictures ---------------------------------------------------------------------------------

  const filters = document.getElementById("filters");
  if (filters) {
    const gallery = document.querySelector(".gallery");
    const pictures = [...gallery.children].map((element, place) => {
      const { folder, faces, emotions: told, p } = element.dataset;
      const values = p.trim().split(" ").map(Number);
      return { element, place, folder, n_faces: Number(faces), faces: told.trim().split(" ").filter(Boolean), values, top: Math.max(...values) };
    });
    const choices = Object.fromEntries([...filters.querySelectorAll("[data-filter]")].map((select) => [select.dataset.filter, select]));
    const order = document.getElementById("order");
    const names = [...choices.emotion.options].map((option) => option.value).slice(1, -1);
    const keys = { "": (picture) => -picture.place, confidence: (picture) => picture.top, doubt: (picture) => (picture.n_faces ? -picture.top : -2), faces: (picture) => picture.n_faces };
    names.forEach((name, i) => (keys[`p-${name}`] = (picture) => picture.values[i]));
    const show = (sorts) => {
      const emotion = choices.emotion.value, certainty = choices.certainty.value, folder = choices.folder?.value ?? "";
      let n = 0;
      for (const picture of pictures) {
        const faces = picture.faces.filter((face) => !certainty || face.endsWith("!") === (certainty === "certain"));
        const fits = emotion === "none" ? !picture.n_faces : emotion ? faces.some((face) => face.replace("!", "") === emotion) : !certainty || faces.length > 0;
        const isShown = fits && (!folder || picture.folder === folder);
        picture.element.hidden = !isShown;
        n += isShown;
      }
      document.getElementById("count").textContent = `${n.toLocaleString("en")} of ${pictures.length.toLocaleString("en")}`;
      if (sorts) {
        const key = keys[order.value];
        gallery.append(...[...pictures].sort((a, b) => key(b) - key(a) || a.place - b.place).map((picture) => picture.element));
      }
    };
    for (const select of Object.values(choices)) select.addEventListener("change", () => show(false));
    order.addEventListener("change", () => show(true));
    filters.hidden = false;
    show(false);
    addEventListener("beforeprint", () => {
      for (const { element } of pictures)
        if (!element.hidden) for (const image of element.querySelectorAll("img")) image.loading = "eager";
    });
  }

  // --- tables -----------------------------------------------------------------------------------

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        sortTable(table.tBodies[0], heads, column);
        showFirst(table);
      });
    });
    showFirst(table);
  }

  /* Of a long table the first rows are shown until the reader asks for all. */
  function showFirst(table) {
    const first = Number(table.dataset.first ?? Infinity);
    const rows = [...table.tBodies[0].rows];
    rows.forEach((row, index) => (row.hidden = index >= first));
    if (rows.length <= first || table.nextElementSibling?.classList.contains("more")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "more";
    button.textContent = `Show all ${rows.length.toLocaleString("en")}`;
    button.addEventListener("click", () => {
      delete table.dataset.first;
      button.remove();
      showFirst(table);
    });
    table.after(button);
  }

  function sortTable(body, heads, column) {
    const head = heads[column];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const { compare } = new Intl.Collator(undefined, { numeric: true });
    const order = head.classList.contains("number") ? (a, b) => a - b : compare;
    const tell = (cell) => cell.dataset.sort ?? cell.textContent.trim();
    const rows = Array.from(body.rows, (row) => ({ row, key: tell(row.cells[column]) }));
    rows.sort((a, b) => order(a.key, b.key));
    body.append(...(down ? rows.reverse() : rows).map(({ row }) => row));
  }
}
