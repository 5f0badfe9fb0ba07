import assert from "node:assert/strict";
import { test } from "node:test";
import { type Facts, programsOf, resolveServer } from "../src/server";

const NOTHING: Facts = {
  configured: "",
  interpreter: undefined,
  folders: ["/work/one", "/work/two"],
  isTrusted: true,
  managed: "/storage/server",
  home: "/home/ada",
  searchPath: "/usr/local/bin:/usr/bin",
  platform: "linux",
  isExecutable: () => false,
};

function resolve(facts: Partial<Facts>, ...programs: string[]) {
  return resolveServer({ ...NOTHING, isExecutable: (file) => programs.includes(file), ...facts });
}

const CHOSEN = { interpreter: "/envs/chosen/bin/python" };
const EVERYWHERE = [
  "/opt/dgemma-lsp",
  "/envs/chosen/bin/dgemma-lsp",
  "/work/one/.venv/bin/dgemma-lsp",
  "/work/one/venv/bin/dgemma-lsp",
  "/work/two/.venv/bin/dgemma-lsp",
  "/work/two/venv/bin/dgemma-lsp",
  "/usr/local/bin/dgemma-lsp",
  "/usr/bin/dgemma-lsp",
  "/storage/server/bin/dgemma-lsp",
];

test("the order is: setting, chosen interpreter, folders, PATH, managed environment", () => {
  const [configured, ...places] = EVERYWHERE;
  const seen = [resolve({ ...CHOSEN, configured: configured as string }, ...EVERYWHERE)];
  while (places.length > 0) {
    seen.push(resolve(CHOSEN, ...places));
    places.shift();
  }
  assert.deepEqual(
    seen.map((found) => (found.kind === "server" ? found.command : found.kind)),
    EVERYWHERE,
  );
});

test("where nothing is, the server is missing", () => {
  assert.deepEqual(resolve(CHOSEN), { kind: "missing" });
});

test("a setting that names no program is an error, whatever else is there", () => {
  const found = resolve({ configured: "/gone" }, ...EVERYWHERE);
  assert.equal(found.kind, "misconfigured");
  assert.match(found.kind === "misconfigured" ? found.message : "", /"\/gone".*not a program/);
});

test("a setting may be a name on PATH, begin at home, or in the first folder", () => {
  const cases = {
    "my-lsp": "/usr/bin/my-lsp",
    "~/bin/lsp": "/home/ada/bin/lsp",
    "${workspaceFolder}/lsp": "/work/one/lsp",
    "tools/lsp": "/work/one/tools/lsp",
  };
  for (const [configured, expected] of Object.entries(cases)) {
    const found = resolve({ configured }, expected);
    assert.deepEqual(found, { kind: "server", source: "setting", command: expected });
  }
});

test("in a restricted workspace nothing of the workspace is started", () => {
  const found = resolve({ ...CHOSEN, isTrusted: false }, ...EVERYWHERE.slice(1));
  assert.deepEqual(found, { kind: "server", source: "path", command: "/usr/local/bin/dgemma-lsp" });
});

test("a relative folder on PATH, which would mean the workspace, is not searched", () => {
  assert.equal(resolve({ searchPath: ".:bin" }, "dgemma-lsp", "bin/dgemma-lsp").kind, "missing");
});

test("Windows has its own folders and endings", () => {
  const facts = {
    platform: "win32",
    interpreter: "C:\\conda\\python.exe",
    searchPath: "C:\\tools",
    folders: [],
  } as const;
  const programs = ["C:\\conda\\Scripts\\dgemma-lsp.exe", "C:\\tools\\dgemma-lsp.exe"];
  for (const expected of programs) {
    const found = resolve(facts, ...programs.slice(programs.indexOf(expected)));
    assert.equal(found.kind === "server" && found.command, expected);
  }
  assert.deepEqual(programsOf("C:\\e", "python", "win32")[0], "C:\\e\\Scripts\\python.exe");
});
