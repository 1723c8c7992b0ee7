// Lesson 1: which URL reaches which function?
//
// The lecture says: an APIRouter is a small FastAPI app. Give it a prefix, add one topic's routes
// with a tag, and include it in the app:
//
//	user_router = APIRouter(prefix="/users")
//
//	@user_router.get("/{username}", tags=["users"])
//	def read_user(username: str): ...
//
//	app.include_router(user_router)
//
// Go says: since Go 1.22, http.ServeMux matches methods and wildcards, and a ServeMux is itself an
// http.Handler, so one can be nested in another. That is enough for a router:
//
//	users := NewRouter("/users", "users")
//	users.Get("/{username}", http.HandlerFunc(readUser)) // r.PathValue("username")
//
//	app := NewRouter("")
//	app.Get("/docs", app.Docs())
//	app.Include(users)
//	http.ListenAndServe("localhost:8000", app.Handler())
//
// This file imports only the standard library. To use it elsewhere, copy it and change the package
// clause. It needs Go 1.23.

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

// A Router is a set of routes under one prefix, like FastAPI's APIRouter. Add routes and include
// routers in any order, then call Handler on the outermost one.
type Router struct {
	// NoMatch answers requests that match no route. If the path allows other methods, the Allow
	// header is already set: answer with 405, otherwise with 404. Only the outermost router's
	// NoMatch is used; if it is nil, the response is plain text.
	NoMatch http.Handler

	prefix     string
	tags       []string
	middleware []func(http.Handler) http.Handler
	routes     []*Route
	subs       []*Router
}

// A Route is one entry in the route table. Only Routes fills in its full Path and its Tags.
type Route struct {
	Method  string   `json:"method"`
	Path    string   `json:"path"`    // with every prefix
	Tags    []string `json:"tags"`    // of all enclosing routers, outermost first
	Summary string   `json:"summary"` // derived from the handler's name: "Read User" from readUser
	Example string   `json:"example"` // a sample request body, shown by Docs

	handler http.Handler
}

// NewRouter returns an empty router. The prefix must be "" or start with a slash and not end with
// one; it may contain wildcards ("/t/{tenant}/users"). NewRouter panics on an invalid prefix.
func NewRouter(prefix string, tags ...string) *Router {
	if prefix != "" && (prefix[0] != '/' || strings.HasSuffix(prefix, "/")) {
		panic(fmt.Sprintf("router %q: the prefix must start with a slash and not end with one", prefix))
	}
	mustParse("GET " + prefix + "/")
	return &Router{prefix: prefix, tags: tags}
}

// Get registers h for GET and HEAD. The path is the rest of a ServeMux pattern after the prefix: ""
// means the prefix itself, "/" the prefix with a trailing slash.
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

// Handle registers h for a method. You may set Summary and Example on the returned Route. Handle
// panics on an invalid pattern, a bad method or a nil handler, so that the stack trace shows the
// line with the mistake. Only an empty path with no prefix at all panics later, in Handler.
func (rt *Router) Handle(method, path string, h http.Handler) *Route {
	name := fmt.Sprintf("route %s %s%s", method, rt.prefix, path)
	if path != "" && path[0] != '/' {
		panic(name + ": the path must be empty or start with a slash")
	}
	// In a ServeMux pattern, no method means any method, and text after a space may be a host.
	if method == "" || method == http.MethodConnect || strings.ContainsAny(method, " \t") {
		panic(name + ": the method must not be empty, contain a space, or be CONNECT, which has no path")
	}
	if f := reflect.ValueOf(h); h == nil || f.Kind() == reflect.Func && f.IsNil() {
		panic(name + ": the handler must not be nil")
	}
	mustParse(method + " " + cmp.Or(rt.prefix+path, "/"))
	route := &Route{Method: method, Path: path, Summary: summary(h), handler: h}
	rt.routes = append(rt.routes, route)
	return route
}

// mustParse panics with ServeMux's message if the pattern is invalid.
func mustParse(pattern string) {
	http.NewServeMux().Handle(pattern, http.NotFoundHandler())
}

// Use wraps rt in middleware; the first is outermost. Handler calls each one once for every place
// where rt is included, so a limiter created then counts all of rt's routes together.
//
// The middleware runs after a request has matched a route of rt or of a router in it: r.Pattern is
// set, and the path and the method must not change. The outermost router's middleware runs before
// the match instead: it sees every request, and r.Pattern only after next.
func (rt *Router) Use(middleware ...func(http.Handler) http.Handler) {
	rt.middleware = append(rt.middleware, middleware...)
}

// Include adds sub's routes under rt's prefix. A router may be included in several others.
func (rt *Router) Include(sub *Router) {
	rt.subs = append(rt.subs, sub)
}

// Routes returns the routes of rt, then those of the routers in it.
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

// Handler returns a handler for the routes of rt and of the routers in it. If two routes conflict,
// it panics with ServeMux's message, which names both.
func (rt *Router) Handler() http.Handler {
	mux, _ := rt.mux("")
	methods := []string{http.MethodHead} // a ServeMux matches HEAD wherever it matches GET
	for _, route := range rt.Routes() {
		methods = append(methods, route.Method)
	}
	slices.Sort(methods)
	methods = slices.Compact(methods)

	// A request that matches no route ends up at "/", the least specific pattern. On its own, a
	// ServeMux answers 404 and 405 in plain text; with a catch-all, every 405 becomes a 404
	// (golang/go#65648), so this one asks the mux which methods the path allows.
	catchAll := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Pattern = "" // the catch-all is not a route
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

	return rt.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// CONNECT requests and the target * have no path, and a ServeMux would answer them itself.
		if r.RequestURI == "*" || r.Method == http.MethodConnect {
			catchAll.ServeHTTP(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// mux returns a ServeMux with rt's routes. It also has every route of the routers in rt, each
// leading to that router's own mux inside its middleware. The patterns are for the enclosing mux.
//
// Mounting the inner mux at its prefix ("/users/") would take one line. But a mount claims every
// path below the prefix for every method: a neighboring route's 405 becomes a 404, and
// "/{user}/settings" conflicts with "/v1/". And http.StripPrefix copies the request and removes the
// prefix from redirects and r.Pattern.
func (rt *Router) mux(prefix string) (mux *http.ServeMux, patterns []string) {
	mux = http.NewServeMux()
	prefix += rt.prefix
	for _, route := range rt.routes {
		pattern := route.Method + " " + prefix + route.Path
		if strings.HasSuffix(pattern, "/") {
			pattern += "{$}" // this path only, since a trailing slash matches everything below it
		}
		mux.Handle(pattern, route.handler)
		patterns = append(patterns, pattern)
	}
	for _, sub := range rt.subs {
		inner, innerPatterns := sub.mux(prefix)
		h := sub.wrap(inner)
		for _, pattern := range innerPatterns {
			mux.Handle(pattern, h)
		}
		patterns = append(patterns, innerPatterns...)
	}
	return mux, patterns
}

// wrap returns h inside rt's middleware.
func (rt *Router) wrap(h http.Handler) http.Handler {
	for _, middleware := range slices.Backward(rt.middleware) {
		h = middleware(h)
	}
	return h
}

// capital finds the start of a word: an uppercase letter after a character that is not one.
var capital = regexp.MustCompile(`(\P{Lu})(\p{Lu})`)

// summary derives a title from the name of a handler function: "main.(*app).readUser-fm" becomes
// "Read User". Other handlers and function literals have no title.
func summary(h http.Handler) string {
	f := reflect.ValueOf(h)
	if f.Kind() != reflect.Func {
		return ""
	}
	name := runtime.FuncForPC(f.Pointer()).Name()
	name = strings.TrimSuffix(strings.TrimSuffix(name, "-fm"), "[...]") // method values, generics
	name = name[strings.LastIndexByte(name, '.')+1:]
	if strings.Trim(strings.TrimPrefix(name, "func"), "0123456789") == "" {
		return "" // a function literal: "func1"
	}
	words := []rune(capital.ReplaceAllString(name, "$1 $2"))
	words[0] = unicode.ToUpper(words[0])
	return string(words)
}

// Docs returns a handler for a page that lists rt's routes and lets you try them, like FastAPI's
// /docs. The page loads nothing from elsewhere; its policy allows only its own script and style.
func (rt *Router) Docs() http.Handler {
	hash := func(tag string) string {
		_, content, _ := strings.Cut(page, "<"+tag+">")
		content, _, _ = strings.Cut(content, "</"+tag+">")
		sum := sha256.Sum256([]byte(content))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	policy := "default-src 'none'; script-src " + hash("script") + "; style-src " + hash("style") +
		"; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	html := sync.OnceValue(func() string { // at the first request, as routes may still be added
		// It can't fail on strings, and it escapes <, so no example ends the script element.
		table, _ := json.Marshal(rt.Routes())
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
<main><h1>Docs</h1><noscript>This page needs JavaScript.</noscript></main>
<template id="value"><label><input class="text" required pattern="(?!\.\.?$).+" title="must not be . or .."></label></template>
<template id="route"><details>
  <summary><b class="method"></b><b class="path"></b>&ensp;<span class="summary"></span></summary>
  <div class="columns"><form autocomplete="off" autocapitalize="off" spellcheck="false">
    <label class="query">Query <input class="text" name="query" placeholder="name=value"></label>
    <label>Headers, one per line <textarea class="text" name="headers" placeholder="Name: value"></textarea></label>
    <label class="body">Body <textarea class="text" name="body" rows="3"></textarea></label>
    <div><button class="send">Send</button> <button type="button" class="copy">Copy curl</button></div>
    <pre class="curl" tabindex="0" role="group" aria-label="As a curl command"></pre>
  </form><div class="reply">
    <div><output class="status">No response yet</output>&ensp;<span class="source"></span></div>
    <progress class="progress" aria-label="Progress" hidden></progress>
    <pre class="content" tabindex="0" role="group" aria-label="Body"></pre>
    <pre class="headers" tabindex="0" role="group" aria-label="Headers"></pre>
</div></div></details></template>
<script type="application/json" id="routes">{{routes}}</script>
<script>
const copyOf = id => document.getElementById(id).content.firstElementChild.cloneNode(true);
// Text from the server is set as textContent, so it is shown but can't run.
const part = (root, name) => root.querySelector("." + name);
const wildcard = /\{[^$}]+\}/g; // {name} and {name...}, but not {$}
function card(route) {
  const card = copyOf("route"), form = card.querySelector("form"), field = form.elements;
  card.dataset.method = route.method;
  for (const name of ["method", "path", "summary"]) part(card, name).textContent = route[name];
  for (const [name] of route.path.matchAll(wildcard)) {
    const label = copyOf("value"); // its input refuses . and .., which browsers remove from a path
    label.prepend(name);
    label.lastElementChild.name = name; // with its braces, so that {query} can't clash with query
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
    part(card, "reply").replaceWith(part(copyOf("route"), "reply")); // clear the last response
    send(request(), part(card, "reply"));
  };
  return card;
}
function curl({ url, method, headers, body }) {
  const quote = text => "'" + text.replaceAll("'", "'\\''") + "'";
  const words = headers.map(header => "-H " + quote(header.join(": ")));
  if (body) words.push("--data-raw " + quote(body)); // -d would read a file if body starts with @
  // -g makes curl take [] and {} literally.
  return ["curl -ig -X " + method, quote(url.href), ...words].join(" \\\n  ");
}
// A 202 means "accepted, look there later", so send polls its Location until a response has no
// Retry-After or is an error, or until the next Send removes this view from the page.
async function send(request, view) {
  let reply = await ask(request, view);
  const url = URL.parse(reply.headers.get("Location"), reply.url);
  if (reply.status != 202 || !reply.headers.has("Location") || url?.origin != location.origin) return;
  do {
    // Any Retry-After but 1 to 999999, such as a date, counts as 1.
    const seconds = Number(/^[1-9]\d{0,5}$/.exec(reply.headers.get("Retry-After")) ?? 1);
    part(view, "source").append(", polling again in " + seconds + " s");
    await new Promise(wake => setTimeout(wake, seconds * 1000));
    if (!view.isConnected) return;
    reply = await ask({ ...request, url, method: "GET", body: undefined }, view);
  } while (reply.ok && reply.headers.has("Retry-After"));
}
async function ask({ url, ...options }, view) { // shows the response and returns it
  const start = performance.now(), shown = { headers: "", content: "" };
  let reply = Response.error(), json; // an error until the complete response has arrived
  try {
    const response = await fetch(url, { cache: "no-store", ...options });
    shown.content = await response.text();
    reply = response;
    shown.status = reply.status + " " + reply.statusText;
    shown.headers = [...reply.headers].map(pair => pair.join(": ")).join("\n");
    json = JSON.parse(shown.content);
    shown.content = JSON.stringify(JSON.parse(shown.content, exact), null, 2);
  } catch (error) {
    shown.status ??= "No response: " + error.message; // otherwise the body is just not JSON
  }
  shown.source = options.method + " " + url.pathname + " in " + Math.round(performance.now() - start) + " ms";
  for (const name in shown) part(view, name).textContent = shown[name];
  view.dataset.ok = reply.ok;
  part(view, "progress").hidden = typeof json?.progress != "number";
  part(view, "progress").value = Math.max(0, Math.min(json?.progress, 1)) || 0;
  return reply;
}
// Long numbers are shown as they were sent; JavaScript would round them.
const exact = (key, value, { source } = {}) => typeof value == "number" && JSON.rawJSON?.(source) || value;
const routes = JSON.parse(document.getElementById("routes").textContent) ?? [];
const tags = route => route.tags?.length ? route.tags : ["default"];
for (const tag of new Set(routes.flatMap(tags))) {
  const title = Object.assign(document.createElement("h2"), { textContent: tag });
  document.querySelector("main").append(title, ...routes.filter(r => tags(r).includes(tag)).map(card));
}
</script>`
