// What stands beside the picture when asked for: the policy, examples, progress, the learning curve.

import { make, whole } from "./dom.js";

export function fillPanel(panel, session, progress, pace) {
  panel.replaceChildren(
    make("h2", {}, "Policy"),
    make("p", { className: "policy" }, session.policy),
    ...examples(session),
    make("h2", {}, "Progress"),
    facts(session, progress, pace),
    ...curve(progress),
    ...versions(session),
  );
}

function examples(session) {
  if (!session.examples.length) return [];
  const row = (value, name) => {
    const own = session.examples.filter((example) => example.value === value);
    if (!own.length) return null;
    const pictures = own.map((example) =>
      make("img", { src: `/example/${example.number}?size=240`, alt: `example of ${name}`, loading: "lazy", draggable: false }));
    return make("figure", { className: value ? "drop" : "keep" }, make("figcaption", {}, name), make("div", {}, ...pictures));
  };
  return [make("h2", {}, "Examples"), row(1, "to be dropped"), row(0, "to be kept")];
}

function facts(session, progress, pace) {
  const rows = [
    ["you have answered", `${whole(progress.mine)} of ${whole(progress.total)}`],
    ["answered by enough people", `${whole(progress.complete)} (${session.overlap} each)`],
    ["skipped by you", whole(progress.skipped)],
    ["being looked at elsewhere", whole(progress.held)],
    ["this session", `${whole(pace.count)} in ${Math.round(pace.minutes)} min`],
  ];
  if (progress.positives !== undefined) rows.push(["to be dropped, you say", whole(progress.positives)]);
  if (session.min_dwell_ms) rows.push([`keys within ${session.min_dwell_ms} ms`, whole(pace.early)]);
  return make("dl", {}, ...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function chart(points, label, top) {
  const width = 280, height = 96, right = Math.max(...points.map(([x]) => x), 1);
  const at = ([x, y]) => `${(x / right) * width},${height - (y / top) * height}`;
  const picture = svg("svg", { viewBox: `-2 -6 ${width + 4} ${height + 12}`, role: "img", "aria-label": label, class: "chart" });
  picture.append(
    svg("line", { x1: 0, x2: width, y1: height, y2: height, class: "axis" }),
    svg("polyline", { points: points.map(at).join(" "), class: "line" }),
    svg("circle", { cx: at(points.at(-1)).split(",")[0], cy: at(points.at(-1)).split(",")[1], r: 3.5, class: "dot" }),
  );
  return picture;
}

function curve(progress) {
  if (!progress.curve || progress.curve.length < 2) return [];
  const [answers, positives] = progress.curve.at(-1);
  const text = `${whole(positives)} to be dropped among ${whole(answers)} answers`;
  return [make("figure", {}, make("figcaption", {}, text), chart([[0, 0], ...progress.curve], text, Math.max(positives, 1)))];
}

function versions(session) {
  if (!session.versions.length) return [];
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const points = session.versions.map((version) => [version.labels, version.clean_dropped.share]);
  const rows = session.versions.map((version) =>
    make("tr", {}, make("td", {}, whole(version.labels)), make("td", {}, percent(version.clean_dropped.share)),
      make("td", {}, `${percent(version.clean_dropped.low)} to ${percent(version.clean_dropped.high)}`)));
  return [
    make("h2", {}, "What labels bought"),
    make("p", {}, "Clean images that the certified filter drops, by the labels it was made from. Lower is better."),
    points.length > 1 ? chart(points, "clean images dropped by number of labels", Math.max(...points.map(([, y]) => y), 0.01)) : null,
    make("table", {}, make("thead", {}, make("tr", {}, ...["labels", "dropped", "95 %"].map((name) => make("th", {}, name)))),
      make("tbody", {}, ...rows)),
  ].filter(Boolean);
}
