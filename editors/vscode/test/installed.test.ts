import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { test } from "node:test";
import { isStale, parseNote, readNote, requirement, writeNote } from "../src/installed";

const WHEEL = { requirement: "dgemma_lsp-0.2.0-py3-none-any.whl", sha256: "ab12" };
const RELEASE = { requirement: "dgemma-lsp==0.2.0", sha256: null };

test("the wheel inside the extension is installed, else the release of its version", () => {
  const wheel = "/extension/server/dgemma_lsp-0.1.0-py3-none-any.whl";
  assert.equal(requirement(["/extension/server/notes.txt", wheel], "0.1.0"), wheel);
  assert.equal(requirement([], "0.1.0"), "dgemma-lsp==0.1.0");
});

test("what was installed is current, wherever torch came from", () => {
  for (const cpu of [true, false]) {
    assert.equal(isStale({ ...WHEEL, cpu }, WHEEL), false);
    assert.equal(isStale({ ...RELEASE, cpu }, RELEASE), false);
  }
});

test("another version, a rebuilt wheel, a release for a wheel: each is stale", () => {
  const older = { ...WHEEL, requirement: "dgemma_lsp-0.1.0-py3-none-any.whl" };
  const rebuilt = { ...WHEEL, sha256: "cd34" };
  const olderRelease = { ...RELEASE, requirement: "dgemma-lsp==0.1.0" };
  for (const installed of [older, rebuilt, RELEASE]) {
    assert.equal(isStale({ ...installed, cpu: true }, WHEEL), true, installed.requirement);
  }
  for (const installed of [olderRelease, WHEEL]) {
    assert.equal(isStale({ ...installed, cpu: true }, RELEASE), true, installed.requirement);
  }
});

test("an environment without a note is stale", () => {
  assert.equal(isStale(undefined, WHEEL), true);
  assert.equal(isStale(undefined, RELEASE), true);
});

test("a note is read as it was written, and nothing but what it is about is in it", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "dgemma-note-"));
  try {
    assert.equal(readNote(folder), undefined);
    for (const note of [{ ...WHEEL, cpu: true }, { ...RELEASE, cpu: false }]) {
      writeNote(folder, Object.assign({ argument: "/extension/server/it.whl" }, note));
      assert.deepEqual(readNote(folder), note);
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("what is no note is taken for none", () => {
  const texts = [
    "",
    "null",
    "{}",
    '{"requirement": "a"',
    '{"requirement": "a", "sha256": null}',
    '{"requirement": 1, "sha256": null, "cpu": true}',
  ];
  assert.deepEqual(texts.map(parseNote), texts.map(() => undefined));
});
