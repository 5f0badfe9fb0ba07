import assert from "node:assert/strict";
import { test } from "node:test";
import { isUsablePython, requirement } from "../src/install";

test("Python 3.10 to 3.13 will do", () => {
  const versions = ["2.7", "3.9", "3.10", "3.13", "3.14", "4.0", ""];
  assert.deepEqual(versions.filter(isUsablePython), ["3.10", "3.13"]);
  assert.ok(isUsablePython("3.11\n"));
});

test("the wheel inside the extension is installed, else the release of its version", () => {
  const wheel = "/extension/server/dgemma_lsp-0.1.0-py3-none-any.whl";
  assert.equal(requirement(["/extension/server/notes.txt", wheel], "0.1.0"), wheel);
  assert.equal(requirement([], "0.1.0"), "dgemma-lsp==0.1.0");
});
