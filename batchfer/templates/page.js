"use strict";
{
  const video = document.querySelector("video");
  const note = document.getElementById("video-note");
  const clock = (seconds) => {
    const ticks = Math.round(seconds * 100);
    const two = (n) => String(n).padStart(2, "0");
    const h = Math.floor(ticks / 360000), m = Math.floor(ticks / 6000) % 60;
    const tail = two(Math.floor(ticks / 100) % 60) + "." + two(ticks % 100);
    return h ? `${h}:${two(m)}:${tail}` : `${m}:${tail}`;
  };
  let showNow = () => {};
  const jump = (seconds) => {
    showNow(seconds);
    if (video) video.currentTime = seconds;
  };
  if (video) {
    video.addEventListener("error", () => {
      video.hidden = true;
      note.textContent = "The annotated video is not beside this page.";
    });
  }
  for (const button of document.querySelectorAll("[data-seek]"))
    button.addEventListener("click", () => jump(Number(button.dataset.seek)));

  const data = document.getElementById("charts");
  if (data) {
    const { document: json, roots } = JSON.parse(data.textContent);
    const elements = Object.fromEntries(roots.map(({ id, element }) => [id, element]));
    const item = { docid: "report", roots: elements, root_ids: Object.keys(elements), use_for_title: false };
    Bokeh.embed.embed_items({ report: json }, [item]).then(() => connect(Bokeh.documents[0].roots()));
  }

  function connect(figures) {
    const doubts = ["", "small", "blurred", "turned away", "uncertain"];
    const lanes = [];
    for (const figure of figures) {
      figure.on_event("tap", (event) => jump(event.x / 1000));
      for (const renderer of figure.renderers) {
        const columns = renderer.data_source.data;
        if (renderer.name !== "hover") continue;
        lanes.push(figure);
        const { x, frame, flags } = columns;
        columns.label = Array.from(x, (ms, i) => frame[i] < 0 ? "not on screen" : `${clock(ms / 1000)}, frame ${frame[i]}`);
        columns.doubt = Array.from(flags, (bits) => doubts.filter((_, bit) => bit && bits >> bit & 1).join(", "));
        renderer.data_source.change.emit();
      }
    }
    // Zoom: all charts but the overview share one range.
    const shared = figures[figures.length - 1].x_range;
    const [first, last] = [shared.start, shared.end];
    const zoom = (factor) => {
      const middle = (shared.start + shared.end) / 2;
      const half = Math.min(Math.max((shared.end - shared.start) * factor, shared.min_interval), last - first) / 2;
      const start = Math.min(Math.max(middle - half, first), last - 2 * half);
      shared.setv({ start, end: start + 2 * half });
    };
    const factors = { in: 0.5, out: 2, all: Infinity };
    for (const button of document.querySelectorAll("[data-zoom]"))
      button.addEventListener("click", () => zoom(factors[button.dataset.zoom]));
    for (const lane of lanes) lane.on_event("doubletap", () => zoom(Infinity));

    // Legend: the pressed emotions stand out, none pressed is all.
    const chips = [...document.querySelectorAll("[data-emotion]")];
    for (const chip of chips)
      chip.addEventListener("click", () => {
        chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
        const pressed = chips.filter((c) => c.getAttribute("aria-pressed") === "true").map((c) => c.dataset.emotion);
        for (const lane of lanes)
          for (const renderer of lane.renderers)
            if (renderer.name !== "hover")
              renderer.glyph.fill_alpha = { value: !pressed.length || pressed.includes(renderer.name) ? 1 : 0.12 };
      });
    document.documentElement.dataset.charts = String(figures.length);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
        const numeric = head.classList.contains("number");
        const compare = numeric ? (a, b) => key(a) - key(b) : (a, b) => key(a).localeCompare(key(b), undefined, { numeric: true });
        const rows = [...body.rows].sort(compare);
        if (down) rows.reverse();
        body.append(...rows);
      });
    });
  }
}
