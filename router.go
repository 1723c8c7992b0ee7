// Lesson 1: which URL reaches which function?
//
// The lecture says: APIRouter is a small FastAPI. Give it a prefix and tags, put the routes of
// one topic on it, and include it in the app:
//
//	user_router = APIRouter(prefix="/users", tags=["users"])
//
//	@user_router.get("/{username}")
//	def read_user(username: str): ...
//
//	app.include_router(user_router)
//
// Go says: since 1.22 http.ServeMux knows methods and wildcards, and a ServeMux is itself an
// http.Handler, so one can be mounted in another. That is a router:
//
//	users := NewRouter("/users", "users")
//	users.Get("/{username}", http.HandlerFunc(readUser)) // r.PathValue("username")
//
//	app := NewRouter("")
//	app.Include(users)
//	http.ListenAndServe("localhost:8000", app.Handler())
//
// This file needs nothing but the standard library: copy it and it works.

package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// Router is a set of routes under one prefix: FastAPI's APIRouter. Fill it, include it in
// others, and call Handler on the outermost once everything is in place.
type Router struct {
	// NoMatch writes the reply to a request that no route fits: 404, or 405 with the Allow
	// header already set. Only the outermost router's is used; nil means plain text.
	NoMatch func(w http.ResponseWriter, r *http.Request, status int)

	prefix     string
	tags       []string
	middleware []func(http.Handler) http.Handler
	routes     []*Route
	subs       []*Router
}

// Route is one entry of the route table.
type Route struct {
	Method  string   `json:"method"`
	Path    string   `json:"path"`    // from Routes: in full, as registered
	Tags    []string `json:"tags"`    // from Routes: those of every router around it, outermost first
	Summary string   `json:"summary"` // made from the handler's name: readUser is "Read User"
	Example string   `json:"example"` // a request body to try it with, shown at /docs

	handler    http.Handler
	prefix     string
	middleware []func(http.Handler) http.Handler
}

// NewRouter returns an empty router. The prefix is "" or starts with a slash and does not end
// with one; it may hold wildcards ("/t/{tenant}/users").
func NewRouter(prefix string, tags ...string) *Router {
	return &Router{prefix: prefix, tags: tags}
}

// Get registers h for GET and HEAD. The path is a ServeMux pattern below the prefix: "" is the
// prefix itself, "/" the prefix with a slash and nothing behind it.
func (rt *Router) Get(path string, h http.Handler) *Route {
	return rt.Handle(http.MethodGet, path, h)
}

// Post registers h for POST.
func (rt *Router) Post(path string, h http.Handler) *Route {
	return rt.Handle(http.MethodPost, path, h)
}

// Delete registers h for DELETE.
func (rt *Router) Delete(path string, h http.Handler) *Route {
	return rt.Handle(http.MethodDelete, path, h)
}

// Handle registers h for the given method. The Route it returns may be given a Summary or an Example.
func (rt *Router) Handle(method, path string, h http.Handler) *Route {
	route := &Route{Method: method, Path: path, Summary: summary(h), handler: h}
	rt.routes = append(rt.routes, route)
	return route
}

// Use wraps every route of rt, and of the routers in it, in middleware: the first is outermost.
// It runs after routing, so r.Pattern is known to it, and an unmatched request never reaches it.
func (rt *Router) Use(middleware ...func(http.Handler) http.Handler) {
	rt.middleware = append(rt.middleware, middleware...)
}

// Include adds sub's routes under rt's prefix. A router may be included in several others.
func (rt *Router) Include(sub *Router) {
	rt.subs = append(rt.subs, sub)
}

// Routes lists the routes of rt and of every router in it, in the order they were registered.
// Like Handler, it panics on a bad prefix or path, and on a router inside itself.
func (rt *Router) Routes() []Route {
	return rt.collect(&Router{}, nil)
}

// collect returns rt's routes as they stand inside outer, whose prefix, tags and middleware
// are the sum of those of the routers in around.
func (rt *Router) collect(outer *Router, around []*Router) []Route {
	sum := &Router{
		prefix:     outer.prefix + rt.prefix,
		tags:       slices.Concat(outer.tags, rt.tags),
		middleware: slices.Concat(outer.middleware, rt.middleware),
	}
	if slices.Contains(around, rt) {
		panic(fmt.Sprintf("router %q is included in itself", sum.prefix))
	}
	if p := rt.prefix; p != "" && (p[0] != '/' || p[len(p)-1] == '/') {
		panic(fmt.Sprintf("router %q: the prefix %q must start with a slash and not end with one", sum.prefix, p))
	}
	var routes []Route
	for _, r := range rt.routes {
		full := *r
		full.Path, full.Tags = sum.prefix+r.Path, sum.tags
		full.prefix, full.middleware = sum.prefix, sum.middleware
		if !strings.HasPrefix(full.Path, "/") || r.Path != "" && r.Path[0] != '/' {
			panic(fmt.Sprintf("route %s %s: the path %q must start with a slash", full.Method, full.Path, r.Path))
		}
		if r.Method == "" || strings.ContainsAny(r.Method, " \t") { // ServeMux: any, or a host follows
			panic(fmt.Sprintf("route %s %s: the method is empty, or holds a space", full.Method, full.Path))
		}
		routes = append(routes, full)
	}
	around = append(slices.Clone(around), rt)
	for _, sub := range rt.subs {
		routes = append(routes, sub.collect(sum, around)...)
	}
	return routes
}

// Handler builds the muxes and returns what serves them. It panics on a registration mistake,
// naming the route: better before the first request than during it.
//
// Every prefix is a ServeMux of its own that holds full patterns ("GET /users/{username}") and is
// mounted in the mux around it ("GET /users/"). There is no http.StripPrefix: it would copy the
// request, cut the prefix out of redirects and r.Pattern, and could not cut one with a wildcard.
func (rt *Router) Handler() http.Handler {
	routes := rt.Routes()
	root := http.NewServeMux()
	muxes := map[string]*http.ServeMux{"": root}
	var prefixes, methods []string // in the routes' order, so that a mistake is always the same one
	for _, r := range routes {
		if muxes[r.prefix] == nil {
			muxes[r.prefix] = http.NewServeMux()
			prefixes = append(prefixes, r.prefix)
		}
		if !slices.Contains(methods, r.Method) {
			methods = append(methods, r.Method)
		}
	}
	slices.Sort(methods)

	// A path belongs to the longest prefix above it, whichever router it was registered on.
	owner := func(path string) *http.ServeMux {
		for {
			path = path[:strings.LastIndexByte(path, '/')]
			if mux := muxes[path]; mux != nil {
				return mux
			}
		}
	}
	// Each mux has a catch-all. Without it an unmatched request would get ServeMux's own plain
	// text; with one in the root alone every 405 would become a 404 (golang/go#65648).
	none := &noMatch{root: root, methods: methods, reply: rt.NoMatch}
	root.Handle("/", none)
	for _, prefix := range prefixes {
		mustHandle(muxes[prefix], prefix+"/", none)
		for _, method := range methods {
			mustHandle(owner(prefix), method+" "+prefix+"/", muxes[prefix])
		}
	}
	for _, r := range routes {
		pattern := r.Method + " " + r.Path
		if strings.HasSuffix(pattern, "/") {
			pattern += "{$}" // exactly this path: a bare slash would match the whole subtree
		}
		mustHandle(owner(r.Path), pattern, r.handler, r.middleware...)
	}
	// ServeMux redirects /users to the mount at /users/. That is right if /users/ is a route;
	// otherwise it would end in a 404, and hide a 405 of /users itself.
	for _, prefix := range prefixes {
		if len(none.allowed(&url.URL{Path: prefix + "/"}, "")) > 0 {
			continue
		}
		for _, method := range methods {
			probe := &http.Request{Method: method, URL: &url.URL{Path: prefix}}
			if _, pattern := owner(prefix).Handler(probe); pattern == method+" "+prefix+"/" {
				func() {
					defer func() { recover() }() // it conflicts with a wildcard route: the redirect stays
					owner(prefix).Handle(method+" "+prefix, none)
				}()
			}
		}
	}

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI == "*" || r.Method == http.MethodConnect {
			none.ServeHTTP(w, r) // neither names a path, so ServeMux would answer in its own way
			return
		}
		root.ServeHTTP(w, r)
	})
}

// mustHandle registers h, wrapped in middleware, or panics with a message that names the route.
func mustHandle(mux *http.ServeMux, pattern string, h http.Handler, middleware ...func(http.Handler) http.Handler) {
	defer func() {
		if e := recover(); e != nil {
			panic(fmt.Sprintf("route %s: %v", pattern, e))
		}
	}()
	if f := reflect.ValueOf(h); h == nil || f.Kind() == reflect.Func && f.IsNil() {
		panic("the handler is nil")
	}
	for _, wrap := range slices.Backward(middleware) {
		h = wrap(h)
	}
	mux.Handle(pattern, h)
}

// noMatch answers what no route does. It is only reached then, so the question which methods
// the path would have allowed costs the other requests nothing.
type noMatch struct {
	root    *http.ServeMux
	methods []string
	reply   func(http.ResponseWriter, *http.Request, int)
}

func (n *noMatch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Pattern = "" // the catch-all is no route
	status := http.StatusNotFound
	if allow := n.allowed(r.URL, r.Host); len(allow) > 0 {
		status = http.StatusMethodNotAllowed
		w.Header().Set("Allow", strings.Join(allow, ", "))
	}
	if n.reply == nil {
		http.Error(w, http.StatusText(status), status)
		return
	}
	n.reply(w, r, status)
}

// allowed asks the muxes, method by method, which ones have a route for the URL.
func (n *noMatch) allowed(u *url.URL, host string) (methods []string) {
	for _, method := range n.methods {
		if !n.has(method, u, host) {
			continue
		}
		methods = append(methods, method)
		if method == http.MethodGet {
			methods = append(methods, http.MethodHead) // a ServeMux answers it with GET's handler
		}
	}
	return slices.Compact(methods)
}

// has follows a request through the muxes, to a route or to none.
func (n *noMatch) has(method string, u *url.URL, host string) bool {
	probe := &http.Request{Method: method, URL: u, Host: host}
	h, pattern := n.root.Handler(probe)
	for sub, ok := h.(*http.ServeMux); ok; sub, ok = h.(*http.ServeMux) {
		h, pattern = sub.Handler(probe)
	}
	switch {
	case h == n || strings.HasPrefix(pattern, "/"): // a catch-all, or a redirect to one
		return false
	case strings.HasSuffix(pattern, "/"): // a redirect to a mount: what is there?
		return n.has(method, u.JoinPath("/"), host)
	}
	return true
}

// summary makes a title from the name of a handler function: "main.(*app).readUser-fm" is
// "Read User". Other handlers, and functions without a name, have none.
func summary(h http.Handler) string {
	f := reflect.ValueOf(h)
	if f.Kind() != reflect.Func || f.IsNil() {
		return ""
	}
	name := runtime.FuncForPC(f.Pointer()).Name()
	name = strings.TrimSuffix(name[strings.LastIndexByte(name, '.')+1:], "-fm")
	if strings.Trim(strings.TrimPrefix(name, "func"), "0123456789") == "" {
		return "" // a closure: "func1"
	}
	var title []rune
	for i, c := range name {
		if i == 0 {
			c = unicode.ToUpper(c)
		} else if unicode.IsUpper(c) && !unicode.IsUpper(title[len(title)-1]) {
			title = append(title, ' ')
		}
		title = append(title, c)
	}
	return string(title)
}

// Docs serves a page that lists the routes of rt and tries them out: FastAPI's /docs. It loads
// nothing from anywhere, and its policy lets no script run but its own, known by its hash.
func (rt *Router) Docs() http.Handler {
	hash := func(tag string) string {
		_, content, _ := strings.Cut(page, "<"+tag+">")
		content, _, _ = strings.Cut(content, "</"+tag+">")
		sum := sha256.Sum256([]byte(content))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	policy := "default-src 'none'; script-src " + hash("script") + "; style-src " + hash("style") +
		"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	html := sync.OnceValue(func() string { // at the first request: more routes may follow this one
		table, err := json.Marshal(rt.Routes()) // escapes <, so no example can end the script element
		if err != nil {
			panic(err) // structs of strings
		}
		return strings.Replace(page, "{{routes}}", string(table), 1)
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", policy)
		io.WriteString(w, html())
	})
}

const page = `<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Docs</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif }
body { max-width: 52rem; margin: auto; padding: 1rem; overflow-wrap: anywhere }
[hidden], pre:empty { display: none !important }
details { margin: .5rem 0; border: 1px solid #8886; border-radius: .5rem }
summary, form, .reply { padding: .6rem .8rem }
form, .reply { display: grid; gap: .8rem }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: center }
.method { display: inline-block; width: 4.6rem; margin: 0 .5rem; border-radius: .3rem; text-align: center }
.method, .send { color: #fff; background: #1d5fa8 }
[data-method=POST] { background: #1b7340 } [data-method=DELETE] { background: #b3261e }
.text { display: block; width: 100%; box-sizing: border-box; resize: vertical }
.text, .path, pre { font: .9rem/1.5 ui-monospace, monospace }
.text, button { padding: .4rem .7rem; border: 1px solid #808080; border-radius: .3rem }
pre { margin: 0; padding: .6rem; max-height: 24rem; overflow: auto; white-space: pre-wrap; background: #8882 }
</style>
<h1>Docs</h1><main></main>
<template id="value"><label><input class="text" required pattern="(?!\.\.?$).+"
  title="not . or .., which a browser takes out of a path"></label></template>
<template id="route"><details>
  <summary><b class="method"></b><b class="path"></b> <span class="summary"></span></summary>
  <form autocomplete="off" autocapitalize="off" spellcheck="false">
    <label class="query">Query <input class="text" name="query" placeholder="name=value"></label>
    <label>Headers <textarea class="text" name="headers" placeholder="Name: value"></textarea></label>
    <label class="body">Body <textarea class="text" name="body" rows="3"></textarea></label>
    <label class="wait"><input type="checkbox" name="wait"> wait for the result (Prefer: wait=5)</label>
    <pre class="curl" tabindex="0" aria-label="The same with curl"></pre>
    <div class="row"><button class="send">Send</button> <button type="button" class="copy">Copy curl</button></div>
  </form><div class="reply" hidden></div>
</details></template>
<template id="reply"><div class="reply">
  <output class="status">Sent</output>
  <pre class="headers" tabindex="0" aria-label="Headers"></pre>
  <pre class="content" tabindex="0" aria-label="Body"></pre>
  <div class="task row" hidden><progress aria-label="Progress"></progress> <output class="state"></output>
    <button class="cancel">Cancel</button> <output class="note"></output></div>
</div></template>
<script type="application/json" id="routes">{{routes}}</script>
<script>
const copyOf = id => document.getElementById(id).content.firstElementChild.cloneNode(true);
const part = (root, name) => root.querySelector("." + name);
// All that a server sends becomes text in the page: it is shown, and cannot run.
const set = (root, name, text) => part(root, name).textContent = text;
const wildcard = /\{[^$}]+\}/g; // {name} and {name...}, but not {$}
function card(route) {
  const card = copyOf("route"), form = card.querySelector("form"), field = form.elements;
  for (const name of ["method", "path", "summary"]) set(card, name, route[name]);
  part(card, "method").dataset.method = route.method;
  for (const [name] of route.path.matchAll(wildcard)) {
    const label = copyOf("value");
    label.prepend(name);
    label.lastElementChild.name = name;
    part(card, "query").before(label);
  }
  const bare = part(card, "body").hidden = ["GET", "HEAD"].includes(route.method);
  if (!bare) field.body.value = route.example;
  part(card, "wait").hidden = !field.body.value;
  const request = () => {
    const path = route.path.replace("{$}", "").replace(wildcard, name => encodeURIComponent(field[name].value));
    const url = new URL(path, location), body = field.body.value || undefined;
    url.search = field.query.value;
    const lines = field.headers.value.split("\n").filter(line => line.trim());
    if (body && !lines.some(line => /^content-type\s*:/i.test(line))) lines.push("Content-Type: application/json");
    if (field.wait.checked) lines.push("Prefer: wait=5");
    return { url, method: route.method, headers: lines.map(line => line.split(/:\s*(.*)/, 2)), body };
  };
  (form.oninput = () => set(card, "curl", curl(request())))();
  part(card, "copy").onclick = () => navigator.clipboard?.writeText(curl(request()));
  form.onsubmit = event => {
    event.preventDefault();
    part(card, "reply").replaceWith(copyOf("reply"));
    send(request(), part(card, "reply"));
  };
  return card;
}
function curl({ url, method, headers, body }) {
  const quote = text => "'" + text.replaceAll("'", "'\\''") + "'";
  const words = headers.map(header => "-H " + quote(header.join(": ")));
  if (body) words.push("--data-raw " + quote(body)); // -d would read a file for @
  return ["curl -ig -X " + method, quote(url.href), ...words].join(" \\\n  "); // -g: [] and {} are no patterns
}
// send shows the reply, and if it is a task follows that to its end.
async function send(request, view) {
  let reply = await ask(request);
  for (const name of ["status", "headers", "content"]) set(view, name, reply[name]);
  const url = reply.location, cancel = part(view, "cancel");
  if (url?.origin != location.origin || reply.json?.progress === undefined) return;
  part(view, "task").hidden = false;
  cancel.onclick = async () => set(view, "note", (await ask({ url, method: "DELETE" })).status);
  while (view.isConnected) { // until another request is sent
    const { status, progress } = reply.ok && reply.json || reply; // reply says why it can be followed no more
    set(view, "state", status);
    set(view, "content", reply.content);
    view.querySelector("progress").value = Number(progress) || 0;
    if (cancel.disabled = !["queued", "running"].includes(status)) return;
    await new Promise(wake => setTimeout(wake, 500));
    reply = await ask({ url });
  }
}
async function ask({ url, ...options }) {
  const reply = { headers: "", content: "" }, start = performance.now();
  try {
    const response = await fetch(url, { cache: "no-store", ...options });
    reply.content = await response.text();
    reply.ok = response.ok;
    reply.status = response.status + " " + response.statusText + " in " + Math.round(performance.now() - start) + " ms";
    reply.headers = [...response.headers].map(pair => pair.join(": ")).join("\n");
    reply.json = JSON.parse(reply.content);
    reply.content = JSON.stringify(JSON.parse(reply.content, exact), null, 2);
    reply.location = new URL(response.headers.get("Location") ?? response.url, response.url);
  } catch (error) {
    reply.status ??= "No reply: " + error.message; // else it is only no JSON
  }
  return reply;
}
// A long number is shown as it was sent: JavaScript would round it.
const exact = (key, value, { source } = {}) => typeof value == "number" && JSON.rawJSON?.(source) || value;
const routes = JSON.parse(document.getElementById("routes").textContent) ?? [];
const tags = route => route.tags ?? ["default"];
for (const tag of new Set(routes.flatMap(tags))) {
  const title = Object.assign(document.createElement("h2"), { textContent: tag });
  document.querySelector("main").append(title, ...routes.filter(r => tags(r).includes(tag)).map(card));
}
</script>
`
