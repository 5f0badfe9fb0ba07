import assert from "node:assert/strict";
import { test } from "node:test";
import { layOut } from "../src/canvas";

const token = (text: string, confidence: number, accepted = false) => ({ text, confidence, accepted });

test("tokens of equal certainty are one piece, accepted ones are certain", () => {
  const pieces = layOut([
    token("re", 0.1, true),
    token("turn", 0.9, true),
    token(" a", 0.7),
    token(" b", 0.3),
    token("?", 0.01),
  ]);
  assert.deepEqual(pieces, [
    { text: "return", certainty: 3 },
    { text: " a", certainty: 2 },
    { text: " b", certainty: 1 },
    { text: "?", certainty: 0 },
  ]);
});

test("line ends are drawn as a sign", () => {
  assert.deepEqual(layOut([token("a\n\tb\r\n", 0.9)]), [{ text: "a⏎    b⏎", certainty: 2 }]);
});

test("a long draft is cut, in characters and in pieces", () => {
  const long = layOut([token("x".repeat(500), 0.9), token("y", 0.9, true)]);
  assert.equal(long.map(({ text }) => text).join(""), `${"x".repeat(240)}…`);
  const many = layOut(Array.from({ length: 100 }, (_, index) => token("z", 1, index % 2 === 0)));
  assert.equal(many.length, 40);
  assert.equal(many.at(-1)?.text, "…");
});
