// Chromium with VS Code in it, driven by lines of JSON: one object in, one object out.
//
//   node drive.mjs CHROMIUM       in the cache folder, where playwright-core is
//
// {op: "open", url}                 go to a page
// {op: "keys", keys: [...]}         press keys, one after another
// {op: "type", text, delay}         type, with milliseconds between the characters
// {op: "wait", js, ms}              until the expression is truthy; its value comes back
// {op: "eval", js}                  the value of an expression in the page
// {op: "click", selector}
// {op: "shot", path, clip?}         a screenshot
// {op: "record", folder}            from now on a picture after every change, MILLISECONDS.png
// {op: "stop"}                      recording
//
// An answer is {value} or {error}.

import { writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(`${process.cwd()}/package.json`);
const { chromium } = require("playwright-core");

const browser = await chromium.launch({
  executablePath: process.argv[2],
  args: ["--no-sandbox", "--disable-gpu"],
});
const context = await browser.newContext({ viewport: { width: 1000, height: 640 } });
const page = await context.newPage();

let cast;

async function record({ folder }) {
  cast = await context.newCDPSession(page);
  cast.on("Page.screencastFrame", async ({ data, metadata, sessionId }) => {
    const name = `${Math.round(metadata.timestamp * 1000)}.png`;
    writeFileSync(`${folder}/${name}`, Buffer.from(data, "base64"));
    await cast.send("Page.screencastFrameAck", { sessionId }).catch(() => undefined);
  });
  await cast.send("Page.startScreencast", { format: "png", everyNthFrame: 1 });
}

const operations = {
  record,
  stop: () => cast.send("Page.stopScreencast"),
  open: ({ url }) => page.goto(url),
  keys: async ({ keys }) => {
    for (const key of keys) {
      await page.keyboard.press(key);
    }
  },
  type: ({ text, delay }) => page.keyboard.type(text, { delay }),
  wait: async ({ js, ms }) => {
    const handle = await page.waitForFunction(js, undefined, { timeout: ms, polling: 50 });
    return handle.jsonValue();
  },
  eval: ({ js }) => page.evaluate(js),
  click: ({ selector }) => page.locator(selector).first().click(),
  shot: async ({ path, clip }) => {
    await page.screenshot({ path, ...(clip ? { clip } : {}) });
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...rest } = JSON.parse(line);
  let answer;
  try {
    const value = await operations[op](rest);
    answer = { value: op === "open" ? null : (value ?? null) };
  } catch (error) {
    answer = { error: String(error.message ?? error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
