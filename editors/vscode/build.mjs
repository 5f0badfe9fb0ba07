// node build.mjs          dist/extension.js, what is shipped
// node build.mjs test     dist/test/*.test.js, for `node --test`; `vscode` is test/vscode.ts there

import { rmSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { build } from "esbuild";

const common = { bundle: true, platform: "node", format: "cjs", target: "node20", logLevel: "warning" };

if (process.argv[2] === "test") {
  rmSync("dist/test", { recursive: true, force: true });
  const files = (await readdir("test")).filter((name) => name.endsWith(".test.ts"));
  await build({
    ...common,
    entryPoints: files.map((name) => `test/${name}`),
    outdir: "dist/test",
    alias: { vscode: "./test/vscode.ts" },
  });
} else {
  await build({
    ...common,
    entryPoints: ["src/extension.ts"],
    outfile: "dist/extension.js",
    external: ["vscode"],
    minify: true,
    mainFields: ["module", "main"],
  });
}
