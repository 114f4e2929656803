// The process that runs ONNX Runtime Web for hwprune: WebAssembly in Node, the engine that browsers run.
// A JSON line asks and one answers; tensors are {type, dims, data: base64}. argv: module of onnxruntime-web.
import { createInterface } from 'node:readline';
import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

const ort = await import(process.argv[2]);
const parent = process.ppid;
ort.env.wasm.numThreads = 1;  // others are workers, which this build can't start in Node
ort.env.logLevel = 'error';
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, int8: Int8Array, uint8: Uint8Array,
  bool: Uint8Array,
};
// One engine for all sessions: what is compared runs the same compiled WebAssembly, optimised as far.
const sessions = new Map(), bound = new Map();
let next = 0;

const tensor = ({ type, dims, data }) => {
  const bytes = Buffer.from(data, 'base64');
  const copy = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  return new ort.Tensor(type, new ARRAYS[type](copy), dims);
};
const plain = (t) => ({
  type: t.type, dims: t.dims, data: Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength).toString('base64'),
});
const feeds = (session, inputs) => Object.fromEntries(session.inputNames.map((name, place) => [name, tensor(inputs[place])]));

const commands = {
  async load({ path, weights }) {
    const options = {
      executionProviders: ['wasm'], graphOptimizationLevel: 'all',
      externalData: weights.map((name) => ({ path: name, data: readFileSync(join(dirname(path), name)) })),
    };
    const session = await ort.InferenceSession.create(readFileSync(path), options);
    sessions.set(next, session);
    return { session: next++, inputs: session.inputNames };
  },
  async drop({ session }) {
    await sessions.get(session)?.release();
    sessions.delete(session);
    for (const [number, one] of bound) if (one.session === session) bound.delete(number);
    return {};
  },
  async run({ session, inputs }) {
    const one = sessions.get(session), results = await one.run(feeds(one, inputs));
    return { outputs: one.outputNames.map((name) => plain(results[name])) };
  },
  async bind({ session, inputs }) {
    bound.set(next, { session, fed: feeds(sessions.get(session), inputs) });
    return { number: next++ };
  },
  // Seconds of `runs` runs: CPU time of this process, and the clock's.
  async time({ number, runs }) {
    const { session, fed } = bound.get(number), one = sessions.get(session);
    const cpu = process.cpuUsage(), start = performance.now();
    for (let run = 0; run < runs; run++) {
      await one.run(fed);
      // Whoever asked may be gone; else nobody would notice before the last run.
      if (process.ppid !== parent) process.exit(1);
    }
    const wall = (performance.now() - start) / 1e3, used = process.cpuUsage(cpu);
    return { seconds: (used.user + used.system) / 1e6, wall };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let answer;
  try {
    answer = await commands[asked.op](asked);
  } catch (error) {
    answer = { error: String(error?.message ?? error).split('\n')[0] };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
