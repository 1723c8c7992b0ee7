// Lesson 1: which URL reaches which function?
//
// The lecture says: APIRouter is a small FastAPI. Give it a prefix, put the routes of one topic on
// it, with a tag, and include it in the app:
//
//	user_router = APIRouter(prefix="/users")
//
//	@user_router.get("/{username}", tags=["users"])
//	def read_user(username: str): ...
//
//	app.include_router(user_router)
//
// Go says: since 1.22 http.ServeMux knows methods and wildcards, and a ServeMux is itself an
// http.Handler, so one can stand inside another. That is a router:
//
//	users := NewRouter("/users", "users")
//	users.Get("/{username}", http.HandlerFunc(readUser)) // r.PathValue("username")
//
//	app := NewRouter("")
//	app.Get("/docs", app.Docs())
//	app.Include(users)
//	http.ListenAndServe("localhost:8000", app.Handler())
//
// This file imports the standard library alone. To use it elsewhere, copy it and write your own
// package clause; it needs Go 1.23.

package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unicode"
)

// Router is a set of routes under one prefix: FastAPI's APIRouter. Fill it and include it in
// others, in any order, and call Handler on the outermost once everything is in place.
type Router struct {
	// NoMatch answers a request that no route fits. If the path has routes, but for other
	// methods, the reply's Allow header is set when it is called: that is a 405, and else it is
	// a 404. Only the outermost router's NoMatch is used; nil answers in plain text.
	NoMatch http.Handler

	prefix     string
	tags       []string
	middleware []func(http.Handler) http.Handler
	routes     []*Route
	subs       []*Router
}

// Route is one entry of the route table.
type Route struct {
	Method  string   `json:"method"`
	Path    string   `json:"path"`    // Routes returns it in full, with every prefix
	Tags    []string `json:"tags"`    // those of every router around it, outermost first
	Summary string   `json:"summary"` // made from the handler's name: readUser is "Read User"
	Example string   `json:"example"` // a request body to try it with, shown at /docs

	handler http.Handler
}

// NewRouter returns an empty router. The prefix is "", or starts with a slash and does not end
// with one; it may hold wildcards ("/t/{tenant}/users"). NewRouter panics on any other.
func NewRouter(prefix string, tags ...string) *Router {
	if prefix != "" && (prefix[0] != '/' || strings.HasSuffix(prefix, "/")) {
		panic(fmt.Sprintf("router %q: a prefix starts with a slash and does not end with one", prefix))
	}
	mustParse("GET " + prefix + "/")
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

// Handle registers h for a method. The Route it returns may be given a Summary or an Example.
// It panics on a path that is no pattern, on a bad method and on a nil handler, so that the stack
// names the line with the mistake. An empty path without any prefix is found later, by Handler.
func (rt *Router) Handle(method, path string, h http.Handler) *Route {
	name := fmt.Sprintf("route %s %s%s", method, rt.prefix, path)
	if path != "" && path[0] != '/' {
		panic(name + ": a path starts with a slash")
	}
	// In a ServeMux pattern no method means any, and what follows a space may be a host.
	if method == "" || method == http.MethodConnect || strings.ContainsAny(method, " \t") {
		panic(name + ": the method is empty, holds a space, or is CONNECT, which names no path")
	}
	if f := reflect.ValueOf(h); h == nil || f.Kind() == reflect.Func && f.IsNil() {
		panic(name + ": the handler is nil")
	}
	mustParse(method + " " + cmp.Or(rt.prefix+path, "/"))
	route := &Route{Method: method, Path: path, Summary: summary(h), handler: h}
	rt.routes = append(rt.routes, route)
	return route
}

// mustParse panics, in ServeMux's words, if it can't read the pattern.
func mustParse(pattern string) {
	http.NewServeMux().Handle(pattern, http.NotFoundHandler())
}

// Use wraps every route of rt, and of the routers in it, in middleware: the first is outermost.
// It runs after routing, so it knows r.Pattern, and a request that no route fits never reaches it.
// It is called once for each route, so what it makes before it returns is that route's own.
func (rt *Router) Use(middleware ...func(http.Handler) http.Handler) {
	rt.middleware = append(rt.middleware, middleware...)
}

// Include adds sub's routes under rt's prefix. A router may be included in several others.
func (rt *Router) Include(sub *Router) {
	rt.subs = append(rt.subs, sub)
}

// Routes lists the routes of rt, and then those of the routers in it.
func (rt *Router) Routes() []Route { return rt.list("", nil) }

func (rt *Router) list(prefix string, tags []string) (routes []Route) {
	prefix += rt.prefix
	tags = slices.Concat(tags, rt.tags)
	for _, r := range rt.routes {
		full := *r
		full.Path, full.Tags = prefix+r.Path, tags
		routes = append(routes, full)
	}
	for _, sub := range rt.subs {
		routes = append(routes, sub.list(prefix, tags)...)
	}
	return routes
}

// Handler builds the muxes and returns what serves them. If two routes conflict, it panics in
// ServeMux's words, which name both: better before the first request than during it.
func (rt *Router) Handler() http.Handler {
	mux := http.NewServeMux()
	rt.fill(mux, "", nil)
	methods := []string{http.MethodHead} // a ServeMux answers it wherever GET is
	for _, route := range rt.Routes() {
		methods = append(methods, route.Method)
	}
	slices.Sort(methods)
	methods = slices.Compact(methods)

	// What no route fits comes to "/", which is the least specific pattern there is. A ServeMux
	// would answer 404 and 405 itself, in plain text; with a catch-all it takes every 405 for a
	// 404 (golang/go#65648), so this one asks the mux which other methods the path allows.
	catchAll := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern = "" // the catch-all is no route
		var allow []string
		for _, method := range methods {
			if _, pattern := mux.Handler(&http.Request{Method: method, URL: r.URL}); pattern != "/" {
				allow = append(allow, method)
			}
		}
		status := http.StatusNotFound
		if len(allow) > 0 {
			status = http.StatusMethodNotAllowed
			w.Header().Set("Allow", strings.Join(allow, ", "))
		}
		if rt.NoMatch == nil {
			http.Error(w, http.StatusText(status), status)
			return
		}
		rt.NoMatch.ServeHTTP(w, r)
	})
	mux.Handle("/", catchAll)

	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Neither CONNECT nor the target * names a path, and ServeMux would answer in its own way.
		if r.RequestURI == "*" || r.Method == http.MethodConnect {
			catchAll.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// fill makes a mux of the routes of rt, enters it in the outermost one route by route (the same
// pattern in both, the inner mux as the outer one's handler), and does so with every router in rt.
//
// To mount the inner mux at its prefix ("/users/") would be one line. But a mount claims all paths
// below it, for all methods: the 405 of a route beside it becomes a 404, and "/{user}/settings"
// beside "/v1/" a conflict. And http.StripPrefix copies the request, and cuts the prefix out of
// redirects and r.Pattern.
func (rt *Router) fill(outermost *http.ServeMux, prefix string, inherited []func(http.Handler) http.Handler) {
	inner := http.NewServeMux()
	prefix += rt.prefix
	middleware := slices.Concat(inherited, rt.middleware)
	for _, r := range rt.routes {
		pattern := r.Method + " " + prefix + r.Path
		if strings.HasSuffix(pattern, "/") {
			pattern += "{$}" // exactly this path: a bare slash would match all that is below it
		}
		h := r.handler
		for _, wrap := range slices.Backward(middleware) {
			h = wrap(h)
		}
		inner.Handle(pattern, h)
		outermost.Handle(pattern, inner)
	}
	for _, sub := range rt.subs {
		sub.fill(outermost, prefix, middleware)
	}
}

// capital finds a capital letter that follows something else: a word begins there.
var capital = regexp.MustCompile(`(\P{Lu})(\p{Lu})`)

// summary makes a title from the name of a handler function: "main.(*app).readUser-fm" is
// "Read User". Other handlers, and functions without a name, have none.
func summary(h http.Handler) string {
	f := reflect.ValueOf(h)
	if f.Kind() != reflect.Func {
		return ""
	}
	name := runtime.FuncForPC(f.Pointer()).Name()
	name = strings.TrimSuffix(strings.TrimSuffix(name, "-fm"), "[...]") // of a method, of a generic function
	name = name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(strings.TrimPrefix(name, "func"), "0123456789") == "" {
		return "" // a closure: "func1"
	}
	words := []rune(capital.ReplaceAllString(name, "$1 $2"))
	words[0] = unicode.ToUpper(words[0])
	return string(words)
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

const page = `<!doctype html><html lang="en"><meta charset="utf-8"><title>Docs</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; max-width: 66rem; margin: auto; overflow-wrap: anywhere; font: 1rem/1.5 system-ui }
h2 { margin: 1.8rem 0 .6rem; font-size: 1.2rem }
details { --color: #2360a5; margin: .5rem 0; border: 1px solid rgb(from var(--color) r g b / .5); border-radius: .4rem }
[data-method=POST], [data-ok=true] { --color: #1b7340 }
[data-method=PUT], [data-method=PATCH] { --color: #955800 }
[data-method=DELETE], [data-ok=false] { --color: #b3261e }
summary { padding: .5rem .8rem; background: rgb(from var(--color) r g b / .1); cursor: pointer }
.columns, form, .reply { display: grid; gap: .9rem; align-content: start }
.columns { grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1.5rem; padding: 1rem .8rem }
.method, .send, [data-ok] .status { color: #fff; background: var(--color); font-weight: bold }
.method { display: inline-block; width: 5rem; margin: 0 .8rem 0 .4rem; border-radius: .3rem; text-align: center }
label, .summary, .source, pre::before { color: light-dark(#555, #aaa); font: .85rem/1.7 system-ui }
.text, .path, .progress, pre { width: 100%; box-sizing: border-box; font: .9rem/1.5 ui-monospace, monospace }
.text, button, .status { padding: .35rem .7rem; border: 1px solid #8886; border-radius: .3rem; resize: vertical }
pre { margin: 0; padding: .6rem .7rem; max-height: 24rem; overflow: auto; white-space: pre-wrap; background: #8882 }
pre::before { content: attr(aria-label); display: block; margin-bottom: .3rem }
</style>
<h1>Docs</h1><main></main>
<template id="value"><label><input class="text" required pattern="(?!\.\.?$).+" title="not . or .."></label></template>
<template id="route"><details>
  <summary><b class="method"></b><b class="path"></b>&ensp;<span class="summary"></span></summary>
  <div class="columns"><form autocomplete="off" autocapitalize="off" spellcheck="false">
    <label class="query">Query <input class="text" name="query" placeholder="name=value"></label>
    <label>Headers, one a line <textarea class="text" name="headers" placeholder="Name: value"></textarea></label>
    <label class="body">Body <textarea class="text" name="body" rows="3"></textarea></label>
    <div><button class="send">Send</button> <button type="button" class="copy">Copy curl</button></div>
    <pre class="curl" tabindex="0" role="region" aria-label="The same with curl"></pre>
  </form><div class="reply">
    <div><output class="status">No reply yet</output>&ensp;<span class="source"></span></div>
    <progress class="progress" aria-label="Progress" hidden></progress>
    <pre class="content" tabindex="0" role="region" aria-label="Body"></pre>
    <pre class="headers" tabindex="0" role="region" aria-label="Headers"></pre>
</div></div></details></template>
<script type="application/json" id="routes">{{routes}}</script>
<script>
const copyOf = id => document.getElementById(id).content.firstElementChild.cloneNode(true);
// Whatever a server sends becomes the textContent of a part: it is shown, and cannot run.
const part = (root, name) => root.querySelector("." + name);
const wildcard = /\{[^$}]+\}/g; // {name} and {name...}, but not {$}
function card(route) {
  const card = copyOf("route"), form = card.querySelector("form"), field = form.elements;
  card.dataset.method = route.method;
  for (const name of ["method", "path", "summary"]) part(card, name).textContent = route[name];
  for (const [name] of route.path.matchAll(wildcard)) {
    const label = copyOf("value"); // it refuses . and .., which a browser takes out of a path
    label.prepend(name);
    label.lastElementChild.name = name; // in its braces: "{query}" is not the field "query"
    part(card, "query").before(label);
  }
  const bare = part(card, "body").hidden = !route.example && ["GET", "HEAD", "DELETE"].includes(route.method);
  if (!bare) field.headers.value = "Content-Type: application/json";
  field.body.value = route.example;
  const request = () => {
    const path = route.path.replace("{$}", "").replace(wildcard, name => encodeURIComponent(field[name].value));
    const url = Object.assign(new URL(location.origin + path), { search: field.query.value });
    const headers = field.headers.value.split("\n").filter(line => line.trim()).map(line => line.split(/:\s*(.*)/, 2));
    return { url, method: route.method, headers, body: field.body.value || undefined };
  };
  (form.oninput = () => part(card, "curl").textContent = curl(request()))();
  part(card, "copy").onclick = () => navigator.clipboard?.writeText(curl(request()));
  form.onsubmit = event => {
    event.preventDefault();
    part(card, "reply").replaceWith(part(copyOf("route"), "reply")); // by a blank one
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
// A 202 says "accepted, look there later". So send looks there, again and again, until a reply has no Retry-After
// or is an error, or until the next Send has taken the view out of the page.
async function send(request, view) {
  let reply = await ask(request, view);
  const url = URL.parse(reply.headers.get("Location"), reply.url);
  if (reply.status != 202 || !reply.headers.has("Location") || url?.origin != location.origin) return;
  do {
    const seconds = Number(/^[1-9]\d{0,5}$/.exec(reply.headers.get("Retry-After")) ?? 1); // 1 for a date, too
    part(view, "source").append(", again in " + seconds + " s");
    await new Promise(wake => setTimeout(wake, seconds * 1000));
    if (!view.isConnected) return;
    reply = await ask({ ...request, url, method: "GET", body: undefined }, view);
  } while (reply.ok && reply.headers.has("Retry-After"));
}
async function ask({ url, ...options }, view) { // shows the reply, and returns it
  const start = performance.now(), shown = { headers: "", content: "" };
  let reply = Response.error(), json; // no reply, until all of it is here
  try {
    const response = await fetch(url, { cache: "no-store", ...options });
    shown.content = await response.text();
    reply = response;
    shown.status = reply.status + " " + reply.statusText;
    shown.headers = [...reply.headers].map(pair => pair.join(": ")).join("\n");
    json = JSON.parse(shown.content);
    shown.content = JSON.stringify(JSON.parse(shown.content, exact), null, 2);
  } catch (error) {
    shown.status ??= "No reply: " + error.message; // else it is only no JSON
  }
  shown.source = options.method + " " + url.pathname + " in " + Math.round(performance.now() - start) + " ms";
  for (const name in shown) part(view, name).textContent = shown[name];
  view.dataset.ok = reply.ok;
  part(view, "progress").hidden = typeof json?.progress != "number";
  part(view, "progress").value = Math.max(0, Math.min(json?.progress, 1)) || 0;
  return reply;
}
// A long number is shown as it was sent: JavaScript would round it.
const exact = (key, value, { source } = {}) => typeof value == "number" && JSON.rawJSON?.(source) || value;
const routes = JSON.parse(document.getElementById("routes").textContent) ?? [];
const tags = route => route.tags?.length ? route.tags : ["default"];
for (const tag of new Set(routes.flatMap(tags))) {
  const title = Object.assign(document.createElement("h2"), { textContent: tag });
  document.querySelector("main").append(title, ...routes.filter(r => tags(r).includes(tag)).map(card));
}
</script>`
