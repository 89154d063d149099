// Validates Kubernetes objects against the schemas of their API: [{file, object}] as JSON on standard input, a line for each fault.
// NODE_MODULES names the directory with the packages of package.json.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(process.env.NODE_MODULES + "/");
const modules = new Map();

async function model(apiVersion, kind) {
  const operator = apiVersion.startsWith("monitoring.coreos.com/");
  const name = (operator ? "@kubernetes-models/prometheus-operator/" : "kubernetes-models/") + apiVersion;
  if (!modules.has(name)) modules.set(name, await import(pathToFileURL(require.resolve(process.env.NODE_MODULES + "/" + name + "/index.js"))));
  return modules.get(name)[kind];
}

// The validators refuse wrong types and missing fields. Names that the API does not know pass here: chart.py has the types find them.
let faults = 0;
for (const { file, object } of JSON.parse(readFileSync(0, "utf8"))) {
  const where = `${file}: ${object.kind} ${object.metadata?.name}`;
  try {
    const Model = await model(object.apiVersion, object.kind);
    if (!Model) throw new Error(`there is no ${object.apiVersion} ${object.kind}`);
    new Model(object).validate();
  } catch (e) {
    faults++;
    console.log(`${where}: ${e.message}`);
  }
}
process.exit(faults ? 1 : 0);
