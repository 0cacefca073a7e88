// Which answers a mode knows, and which keys give them. The keys are Prodigy's, which labellers know: a, x, space, backspace, f, h.

const SKIP = { answer: "skip", keys: [" "], shown: "space", label: "Skip" };
const UNSURE = { answer: "unsure", keys: ["u"], shown: "u", label: "Unsure" };

export function answersOf(mode, sides) {
  if (mode === "compare") {
    return [
      { answer: side("left", sides), keys: ["a", "arrowleft", "1"], shown: "a ←", label: "Left is better", tone: "yes" },
      { answer: "tie", keys: ["t", "arrowdown"], shown: "t ↓", label: "Tie" },
      { answer: side("right", sides), keys: ["x", "arrowright", "2"], shown: "x →", label: "Right is better", tone: "yes" },
      SKIP,
    ];
  }
  const [yes, no] = mode === "pairs" ? ["Copy", "No copy"] : ["Drop", "Keep"];
  return [
    { answer: "yes", keys: ["a", "y"], shown: "a", label: yes, tone: "yes" },
    { answer: "no", keys: ["x", "n"], shown: "x", label: no, tone: "no" },
    UNSURE,
    SKIP,
  ];
}

// Left and right are drawn by lot for each pair: what is stored is which picture, not which side.
function side(where, sides) {
  const shown = sides ?? ["left", "right"];
  return shown[where === "left" ? 0 : 1] === "left" ? "a" : "b";
}

export const MARKS = { yes: "a", no: "x", unsure: "?", skip: "–", a: "A", b: "B", tie: "=", report: "!" };
export const WORDS = { yes: "drop", no: "keep", unsure: "unsure", skip: "skipped", a: "A", b: "B", tie: "tie", report: "reported" };

export const OTHER_KEYS = [
  ["backspace", "take the last decision back"],
  ["f", "flag this one, to be looked at later"],
  ["z", "zoom in and out; move the mouse or use the arrows to look around"],
  ["c", "show or hide the caption"],
  ["b", "blur or reveal (where images are blurred, hovering reveals, too)"],
  ["p", "policy, examples and progress"],
  ["shift R", "report illegal material and stop"],
  ["h", "this help"],
];
export const GRID_KEYS = [
  ["← ↑ → ↓", "go to another image"],
  ["space", "take a mark away"],
  ["shift X", "mark all that have none: keep"],
  ["enter", "done with these; what has no mark is skipped"],
];
