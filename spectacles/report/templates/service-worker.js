// Keeps the page and everything that it needs, so that it works without a network and can be installed.
const CACHE = "spectacles-{{ version }}";
const FILES = {{ files }};

async function keep() {
  await (await caches.open(CACHE)).addAll(FILES);
  await self.skipWaiting();
}

async function tidy() {
  const others = (await caches.keys()).filter((name) => name.startsWith("spectacles-") && name !== CACHE);
  await Promise.all(others.map((name) => caches.delete(name)));
  await self.clients.claim();
}

async function respond(request) {
  return (await caches.match(request, { ignoreSearch: true })) ?? fetch(request);
}

self.addEventListener("install", (event) => event.waitUntil(keep()));
self.addEventListener("activate", (event) => event.waitUntil(tidy()));
self.addEventListener("fetch", (event) => event.respondWith(respond(event.request)));
