// ratings: how many stars each reader gave. Plain Node.js without a package: the mesh is its node's affair.
//
//   GET /ratings/0   the stars
//   GET /readers/0   who wrote a review: asks reviews, through the proxy in HTTP_PROXY if there is one
//   GET /stats       how many asked for stars, for whom, and who they were
'use strict';
const http = require('node:http');

const VERSION = `v1, Node.js ${process.versions.node}`;
const RATINGS = {Antonia: 5, Dromio: 4};
const FORWARDED = ['end-user', 'user-agent', 'x-request-id', 'traceparent', 'tracestate', 'baggage'];
const PROXY = process.env.HTTP_PROXY && new URL(process.env.HTTP_PROXY);
const agent = new http.Agent({keepAlive: true});
const users = new Map(), callers = new Map();
let requests = 0;

function count(counts, key) {
  counts.set(key, (counts.get(key) || 0) + 1);
}

// Who called, as the proxy that took the call says.
function caller(headers) {
  const found = /URI=([^;,]+)/.exec(headers['x-forwarded-client-cert'] || '');
  return found ? found[1] : '-';
}

// A GET by the rules of the mesh: to the proxy, which is told the whole URL; captured, as any program does it.
function get(url, headers) {
  const to = PROXY
    ? {host: PROXY.hostname, port: PROXY.port, path: url.href}
    : {host: url.hostname, port: url.port, path: url.pathname};
  return new Promise((resolve, reject) => {
    http.get({...to, agent, headers: {...headers, host: url.host}}, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (part) => { body += part; });
      response.on('end', () => resolve({status: response.statusCode, body}));
      response.on('error', reject);
    }).on('error', reject);
  });
}

async function readers(headers) {
  const sent = Object.fromEntries(FORWARDED.filter((name) => name in headers).map((name) => [name, headers[name]]));
  const {status, body} = await get(new URL('http://reviews:9080/reviews/0'), sent);
  if (status !== 200) {
    return [502, {error: `reviews answered ${status}`}];
  }
  const {version, reviews} = JSON.parse(body);
  return [200, {id: 0, reviews_version: version, readers: reviews.map((one) => one.reviewer)}];
}

async function answer(path, headers) {
  switch (path) {
    case '/ratings/0':
      requests += 1;
      count(users, headers['end-user'] || '');
      count(callers, caller(headers));
      return [200, {id: 0, version: VERSION, ratings: RATINGS}];
    case '/readers/0':
      return readers(headers);
    case '/stats':
      return [200, {requests, users: Object.fromEntries(users), callers: Object.fromEntries(callers)}];
    default:
      return [404, {error: 'there is nothing here'}];
  }
}

http.createServer(async (request, response) => {
  let found;
  try {
    found = await answer(request.url.split('?')[0], request.headers);
  } catch (error) {
    found = [502, {error: `reviews can't be asked: ${error.message}`}];
  }
  response.writeHead(found[0], {'content-type': 'application/json'});
  response.end(JSON.stringify(found[1]));
}).listen(process.env.PORT, PROXY ? '127.0.0.1' : '0.0.0.0', () => console.log(`ratings ${VERSION} listens`));
