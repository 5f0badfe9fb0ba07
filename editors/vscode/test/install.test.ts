import assert from "node:assert/strict";
import { test } from "node:test";
import { isUsablePython } from "../src/install";

test("Python 3.10 to 3.13 will do", () => {
  const versions = ["2.7", "3.9", "3.10", "3.13", "3.14", "4.0", ""];
  assert.deepEqual(versions.filter(isUsablePython), ["3.10", "3.13"]);
  assert.ok(isUsablePython("3.11\n"));
});
