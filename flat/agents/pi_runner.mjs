// Runs one turn of a JavaScript agent: one JSON document comes in on stdin, one goes out on stdout.
//
//   in:  { ref, config, input, context }        ref is "module#export", relative to the working directory
//   out: { output, content, usage, cost, raw, metadata }
//
// The export (`buildAgent`, else the default one) is called with the config and gives an agent with a `prompt`
// method. What it logs goes to stderr, so that stdout holds nothing but the answer.
import { createRequire } from "node:module";
import { existsSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

for (const name of ["log", "info", "debug"]) console[name] = (...words) => console.error(...words);

async function main() {
  const { ref, config = {}, input = {}, context = {} } = JSON.parse(await text(process.stdin));
  const agent = await (await builder(ref))(config, context);
  if (typeof agent?.prompt !== "function") throw new Error(`${ref} gave no agent with a prompt() method`);
  const answer = await agent.prompt(...promptOf(input));
  return resultOf(answer, agent);
}

async function text(stream) {
  const pieces = [];
  for await (const piece of stream) pieces.push(piece);
  return Buffer.concat(pieces).toString("utf8");
}

async function builder(ref) {
  const [where, name] = ref.split("#");
  const module = await import(locate(where));
  const found = name ? module[name] : module.buildAgent ?? module.default;
  if (typeof found !== "function") throw new Error(`${where} exports no function ${name ?? "buildAgent"}`);
  return found;
}

function locate(where) {
  const file = path.resolve(where);
  if (where.startsWith(".") || path.isAbsolute(where) || existsSync(file)) return pathToFileURL(file).href;
  // A package: installed where the machine is, not where this file is.
  return pathToFileURL(createRequire(path.resolve("index.js")).resolve(where)).href;
}

function promptOf(input) {
  if (input.messages) return [input.messages];
  if (input.message) return [input.message];
  const task = input.task ?? input.prompt ?? "";
  return input.images ? [task, input.images] : [task];
}

function resultOf(answer, agent) {
  if (typeof answer === "string") return { content: answer };
  if (answer && ["output", "content", "usage", "cost"].some((key) => key in answer)) {
    const { output, content, usage, cost, metadata } = answer;
    const words = Array.isArray(content) ? textOf(content) : content;
    return { output, content: words, usage, cost, raw: answer, metadata };
  }
  const said = (agent.state?.messages ?? []).filter((message) => message.role === "assistant");
  const last = said.at(-1);
  if (last?.stopReason === "error") throw new Error(last.errorMessage ?? "the model call failed");
  return { content: last ? textOf(last.content) : null, ...spent(said), raw: last ?? answer ?? null };
}

function textOf(content) {
  if (typeof content === "string") return content;
  return (content ?? []).filter((block) => block.type === "text").map((block) => block.text).join("");
}

function spent(messages) {
  const usage = { input_tokens: 0, output_tokens: 0, cache_read_tokens: 0, cache_write_tokens: 0, api_calls: 0 };
  let cost = null;
  for (const { usage: told } of messages) {
    if (!told) continue;
    usage.api_calls += 1;
    usage.input_tokens += told.input ?? 0;
    usage.output_tokens += told.output ?? 0;
    usage.cache_read_tokens += told.cacheRead ?? 0;
    usage.cache_write_tokens += told.cacheWrite ?? 0;
    if (told.cost?.total != null) cost = (cost ?? 0) + told.cost.total;
  }
  return { usage, cost };
}

main().then(
  (result) => process.stdout.write(JSON.stringify(result), () => process.exit(0)),
  (error) => {
    process.stderr.write(`${error?.stack ?? error}\n`, () => process.exit(1));
  },
);
