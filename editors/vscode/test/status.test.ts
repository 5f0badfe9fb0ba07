import assert from "node:assert/strict";
import { test } from "node:test";
import type { ServerStatus } from "../src/protocol";
import { describe, type Known } from "../src/status";

const RUNNING: Known = {
  phase: { kind: "running" },
  status: undefined,
  latencyMs: undefined,
  isOn: true,
};

const READY: ServerStatus = {
  state: "ready",
  message: "The model is ready.",
  model: "/models/fill-4m",
  device: "cpu",
  lastLatencyMs: 103.7,
  shown: 2,
  silent: { low_confidence: 3 },
};

test("a server that sends no status is shown by what is known here", () => {
  assert.equal(describe(RUNNING).text, "$(sparkle) dgemma");
  assert.equal(describe({ ...RUNNING, latencyMs: 81.2 }).text, "$(sparkle) dgemma 81 ms");
  assert.equal(describe({ ...RUNNING, isOn: false }).text, "$(circle-slash) dgemma: off");
});

test("model, state and last latency come from the server's status", () => {
  const shown = describe({ ...RUNNING, latencyMs: 5000, status: READY });
  assert.equal(shown.text, "$(sparkle) fill-4m 104 ms");
  assert.deepEqual(shown.lines, [
    "The model is ready.",
    "Model: /models/fill-4m on cpu",
    "Suggestions shown: 2",
    "Not shown: low confidence 3",
    "Last suggestion: 104 ms",
  ]);
});

test("each state looks different", () => {
  const states = ["loading", "ready", "busy", "off", "error"] as const;
  const shown = states.map((state) => describe({ ...RUNNING, status: { ...READY, state } }));
  assert.equal(new Set(shown.map(({ text }) => text)).size, states.length);
  assert.deepEqual(
    shown.map(({ isProblem }) => isProblem),
    [false, false, false, false, true],
  );
});

test("a status with nothing in it is still a status", () => {
  const empty = { ...READY, model: null, device: null, lastLatencyMs: null, shown: 0, silent: {} };
  assert.equal(describe({ ...RUNNING, status: empty }).text, "$(sparkle) dgemma");
});
