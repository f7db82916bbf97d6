"use strict";
// The page of a server: a conversation, and beside it what the heads keep while an answer is written. Whatever was said
// reaches the page as text, never as markup; nothing is asked of any other server.
const at = (id) => document.getElementById(id);
const READY = ["expected_attention(0.5)", "expected_attention(0.25)", "snapkv(0.25) | int8", "streaming(0.25)", "int8", "int4"];
let turns = []; // {role, content} of what was said
let model = "", running = null;

function told(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (bytes >= 1024 && place < units.length - 1) { bytes /= 1024; place += 1; }
  return `${bytes.toFixed(place ? 1 : 0)} ${units[place]}`;
}

function headers() {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function failure(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the server answered ${answer.status}`;
  }
}

function option(value, text) {
  const one = document.createElement("option");
  one.value = value;
  one.textContent = text;
  at("keeps").append(one);
}

async function learn() {
  const answer = await fetch("v1/models", { headers: headers() }).catch(() => null);
  at("secret").hidden = at("secret").hidden && answer?.status !== 401;
  if (!answer?.ok) {
    at("model").textContent = answer ? await failure(answer) : "the server does not answer";
    return;
  }
  const { id, headwise } = (await answer.json()).data[0];
  model = id;
  at("model").textContent = id;
  at("keeps").replaceChildren();
  option("default", headwise.recipe ? `as the server says: ${headwise.recipe}` : "everything (dense)");
  if (headwise.recipe) option("recipe:", "everything (dense)");
  for (const name of headwise.plans) option(`plan:${name}`, `plan ${name}`);
  for (const recipe of READY) option(`recipe:${recipe}`, recipe);
  option("own", "a recipe of your own");
}

function ours() {
  const keeps = at("keeps").value;
  if (keeps === "own") return { recipe: at("recipe").value };
  if (keeps.startsWith("plan:")) return { plan: keeps.slice(5) };
  return keeps.startsWith("recipe:") ? { recipe: keeps.slice(7) } : {};
}

function say(role, text) {
  const line = document.createElement("li");
  const who = document.createElement("b");
  const what = document.createElement("span");
  line.className = role;
  who.textContent = { user: "You", assistant: "Answer", wrong: "Refused" }[role];
  what.textContent = text;
  line.append(who, what);
  at("said").append(line);
  line.scrollIntoView({ block: "nearest" });
  return what;
}

function draw(kept, seen, layers) {
  const table = document.createElement("table");
  kept.forEach((row, place) => {
    const line = table.insertRow();
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = `layer ${layers[place]}`;
    line.append(name);
    row.forEach((count, head) => {
      const share = Math.min(1, count / seen);
      const cell = line.insertCell();
      cell.textContent = `${Math.round(100 * share)} %`;
      cell.title = `layer ${layers[place]}, head ${head}: ${count} of ${seen} tokens`;
      cell.style.backgroundColor = `color-mix(in srgb, #10477d ${100 * share}%, #fff)`;
      cell.style.color = share > 0.5 ? "#fff" : "#1a1a2e";
    });
  });
  at("heads").replaceChildren(table);
  at("legend").hidden = false;
}

function show(look) {
  const all = look.kept.flat();
  const share = all.length ? all.reduce((sum, one) => sum + one, 0) / (all.length * look.seen) : 1;
  draw(look.kept, look.seen, look.layers);
  const reading = look.seen < look.prompt_tokens ? `Reading: ${look.seen} of ${look.prompt_tokens} tokens. ` : "";
  at("told").textContent = `${reading}Of ${look.seen} tokens heads keep ${(100 * share).toFixed(0)} % on average.`;
  memory(look.kv_bytes, look.dense_kv_bytes);
}

function memory(kept, dense) {
  const most = Math.max(kept, dense, 1);
  at("kept").value = kept / most;
  at("dense").value = dense / most;
  at("kept-told").textContent = `${told(kept)} (${((100 * kept) / Math.max(1, dense)).toFixed(0)} %)`;
  at("dense-told").textContent = told(dense);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

async function answered(body, signal, put) {
  const answer = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (answer.status === 401) at("secret").hidden = false;
  if (!answer.ok) throw new Error(await failure(answer));
  let first = 0, count = 0, reason = "";
  for await (const event of events(answer)) {
    if (event.error) throw new Error(event.error.message);
    if (event.headwise) show(event.headwise);
    const choice = event.choices?.[0];
    if (choice?.delta?.content) put(choice.delta.content);
    if (choice && choice.delta?.role === undefined && !choice.finish_reason) {
      count += 1;
      first ||= performance.now();
      const seconds = (performance.now() - first) / 1000;
      if (count > 1) at("pace").textContent = `${((count - 1) / seconds).toFixed(1)} tokens/s`;
    }
    reason = choice?.finish_reason || reason;
    if (event.usage) {
      const { prompt_tokens, completion_tokens, prompt_tokens_details } = event.usage;
      at("tokens").textContent =
        `${prompt_tokens} read (${prompt_tokens_details.cached_tokens} known before), ${completion_tokens} written`;
      memory(event.usage.kv_bytes, event.usage.dense_kv_bytes);
    }
  }
  return reason;
}

async function ask(event) {
  event?.preventDefault();
  const question = at("question").value.trim();
  if (!question || running) return;
  if (!model) await learn();
  running = new AbortController();
  busy(true);
  at("question").value = "";
  say("user", question);
  const own = turns; // another conversation may begin meanwhile
  own.push({ role: "user", content: question });
  const about = at("document").value.trim();
  const messages = [...(about ? [{ role: "system", content: about }] : []), ...own];
  const body = { model, messages, stream: true, temperature: 0, stream_options: { include_usage: true } };
  body.headwise = { ...ours(), watch: true };
  let line = null, text = "";
  const put = (more) => { line ??= say("assistant", ""); text += more; line.textContent = text.trimStart(); };
  at("state").textContent = "reading …";
  try {
    const reason = await answered(body, running.signal, put);
    at("state").textContent = reason === "length" ? "The answer ended at its number of tokens." : "";
  } catch (error) {
    if (error.name === "AbortError") at("state").textContent = "Stopped.";
    else say("wrong", error.message);
  }
  if (text) own.push({ role: "assistant", content: text });
  else own.pop();
  running = null;
  busy(false);
}

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
  at("question").focus();
}

at("ask").addEventListener("submit", ask);
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  at("said").replaceChildren();
  at("state").textContent = "";
  at("question").focus();
});
at("keeps").addEventListener("change", () => { at("own").hidden = at("keeps").value !== "own"; });
at("key").addEventListener("change", learn);
at("file").addEventListener("change", async () => {
  const file = at("file").files[0];
  if (!file) return;
  try {
    at("document").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    at("state").textContent = `${file.name} is the document, ${told(file.size)}.`;
  } catch {
    at("state").textContent = `${file.name} is no text in UTF-8; choose another file.`;
  }
});
learn();
