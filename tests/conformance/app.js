// The application of the conformance table, in Node.js: over HTTP/1.1, with short patience, and over HTTP/2.
// Prints its ports as one line of JSON.
"use strict";
const crypto = require("crypto");
const http = require("http");
const http2 = require("http2");

const piece = (size) => Buffer.from("0123456789abcdef".repeat(Math.ceil(size / 16))).subarray(0, size);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function cut(response) {
  if (response.stream) response.stream.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
  else response.socket.resetAndDestroy ? response.socket.resetAndDestroy() : response.socket.destroy();
}

function drain(request, then) {
  const hash = crypto.createHash("sha256");
  let length = 0;
  request.on("data", (data) => ((length += data.length), hash.update(data)));
  request.on("end", () => then(length, hash.digest("hex")));
}

const paths = {
  echo: (request, response) =>
    drain(request, (length, sha256) => {
      const told = { method: request.method, path: request.url, length, sha256, sent: request.headers["x-sent"] };
      const body = JSON.stringify(told);
      response.writeHead(200, { "content-type": "application/json", "content-length": body.length });
      response.end(body);
    }),
  bytes: (request, response, size) => {
    response.writeHead(200, { "content-length": size });
    response.end(piece(Number(size)));
  },
  stream: async (request, response, count) => {
    response.writeHead(200, {});
    for (let at = 0; at < Number(count); at++) {
      response.write(piece(1000));
      await wait(1);
    }
    response.end();
  },
  trailers: (request, response) => {
    response.writeHead(200, { Trailer: "x-sum" });
    response.write(piece(100));
    response.addTrailers({ "x-sum": "abc" });
    response.end(piece(100));
  },
  status: (request, response, status) => {
    response.writeHead(Number(status), { etag: '"a"' });
    response.end(["204", "304"].includes(status) ? undefined : "as asked");
  },
  hints: (request, response) => {
    response.writeEarlyHints({ link: "</a>; rel=preload; as=style" });
    response.end("hinted");
  },
  close: (request, response) => {
    if (request.httpVersion[0] === "1") response.setHeader("connection", "close");
    response.end("bye");
  },
  cookies: (request, response) => {
    response.setHeader("set-cookie", ["a=1", "b=2"]);
    for (let at = 0; at < 50; at++) response.setHeader(`x-many-${at}`, "v".repeat(20));
    response.end("ok");
  },
  abort: (request, response) => {
    response.writeHead(200, { "content-length": 1000 });
    response.write(piece(100), () => setTimeout(() => cut(response), 5));
  },
  tear: (request, response) => {
    response.writeHead(200, {});
    response.write(piece(100), () => setTimeout(() => cut(response), 5));
  },
  silent: (request, response) => cut(response),
  refuse: (request, response) => {
    response.writeHead(413, request.httpVersion[0] === "1" ? { connection: "close" } : {});
    response.end("too large");
    request.resume();
  },
  linger: (request, response) =>
    setTimeout(() => drain(request, (length) => response.end(String(length))), 20),
};

function serve(request, response) {
  const [word, ...more] = request.url.split("?")[0].split("/").slice(1);
  response.on("error", () => {});
  request.on("error", () => {});
  if (paths[word]) return paths[word](request, response, ...more);
  response.writeHead(404);
  response.end();
}

const plain = http.createServer({ keepAliveTimeout: 60000 }, serve);
const few = http.createServer({ keepAliveTimeout: 60000 }, serve);
few.maxRequestsPerSocket = 7;
const brief = http.createServer({ keepAliveTimeout: 300 }, serve);
brief.keepAliveTimeoutBuffer = 0;
const two = http2.createServer({}, serve);
const few2 = http2.createServer({ settings: { maxConcurrentStreams: 3 } }, serve);
let round = 0;
few2.on("stream", (stream) => {
  const session = stream.session;
  session.served = (session.served || 0) + 1;
  // Other settings with every stream; and every seventh is the last.
  const settings = { maxConcurrentStreams: 1 + (round++ % 5), initialWindowSize: [0, 100, 65535, 1 << 20][round % 4] };
  session.settings(settings);
  if (settings.initialWindowSize < 65535) session.settings({ initialWindowSize: 65535 });
  if (session.served === 7) session.close();
});
const brief2 = http2.createServer({}, serve);
brief2.on("session", (session) => session.setTimeout(300, () => session.close()));

const servers = { http1: plain, few1: few, brief1: brief, http2: two, few2, brief2 };
const ports = {};
for (const [name, server] of Object.entries(servers)) {
  server.on("sessionError", () => {});
  server.listen(0, "127.0.0.1", () => {
    ports[name] = server.address().port;
    if (Object.keys(ports).length === Object.keys(servers).length) console.log(JSON.stringify(ports));
  });
}
