package main

// The tests, in the order of the files. A lesson travels with its tests: copy its file, this head
// and the part behind "// ---- router.go", and let goimports put the imports right.

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// program is what the test binary runs instead of the tests when PLAINAPI_RUN is set. The part of
// main.go sets it, for the tests that need a process to stop and to kill.
var program func()

func TestMain(m *testing.M) {
	if os.Getenv("PLAINAPI_RUN") != "" {
		program()
	}
	// os/signal starts a goroutine for good when it is first used: not within a synctest bubble.
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	signal.Stop(c)
	os.Exit(m.Run())
}

// A logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func newLog() (*slog.Logger, *logBuffer) {
	b := &logBuffer{}
	return slog.New(slog.NewTextHandler(b, nil)), b
}

var discard = slog.New(slog.DiscardHandler)

// do sends one request to h. The header is alternating names and values.
func do(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// brief cuts what a failing test prints to what can be read.
func brief(s string) string {
	if len(s) > 600 {
		return s[:600] + "…"
	}
	return s
}

// bubble runs f in a synctest bubble, where time passes when everything waits. If everything waits
// for something else than time, that fails the test and not, as a panic would, all of them.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	defer func() {
		t.Helper()
		if p := recover(); p != nil {
			t.Fatal(p)
		}
	}()
	synctest.Test(t, f)
}

// mustPanic returns what f panics with.
func mustPanic(t *testing.T, f func()) (message string) {
	t.Helper()
	defer func() {
		t.Helper()
		p := recover()
		if p == nil {
			t.Fatal("no panic")
		}
		message = fmt.Sprint(p)
	}()
	f()
	return ""
}

// discardWriter is a ResponseWriter that does nothing, for benchmarks.
type discardWriter struct{ header http.Header }

func (w discardWriter) Header() http.Header         { return w.header }
func (w discardWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w discardWriter) WriteHeader(int)             {}

func benchmarkHandler(b *testing.B, h http.Handler, target string) {
	b.ReportAllocs()
	r := httptest.NewRequest("GET", target, nil)
	w := discardWriter{http.Header{}}
	for b.Loop() {
		h.ServeHTTP(w, r)
	}
}

// ---- router.go

func ExampleRouter() {
	read := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: %s", r.Pattern, r.PathValue("username"))
	}
	users := NewRouter("/users", "users")
	users.Get("/{username}", http.HandlerFunc(read))

	app := NewRouter("")
	app.Include(users)
	for _, route := range app.Routes() {
		fmt.Println(route.Method, route.Path, route.Tags)
	}

	fmt.Println(do(app.Handler(), "GET", "/users/Rick", "").Body)
	// Output:
	// GET /users/{username} [users]
	// GET /users/{username}: Rick
}

var wildcard = regexp.MustCompile(`\{(\w+)(\.\.\.)?\}`)

// reveal answers with the pattern that fitted, and with what its wildcards took.
var reveal = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, r.Pattern)
	for _, name := range wildcard.FindAllStringSubmatch(r.Pattern, -1) {
		fmt.Fprintf(w, " %s=%s", name[1], r.PathValue(name[1]))
	}
})

// routerOf makes a Router of routes, each a string such as "GET /{id}", and of other routers.
func routerOf(prefix string, parts ...any) *Router {
	rt := NewRouter(prefix)
	for _, part := range parts {
		if sub, ok := part.(*Router); ok {
			rt.Include(sub)
			continue
		}
		method, path, _ := strings.Cut(part.(string), " ")
		rt.Handle(method, path, reveal)
	}
	return rt
}

// transcript sends requests to h and checks the answers. A line is "GET /path: " and the status,
// and behind it where a redirect leads to, or what a 405 allows in brackets, and the body.
func transcript(t *testing.T, h http.Handler, lines ...string) {
	t.Helper()
	for _, want := range lines {
		request, _, _ := strings.Cut(want, ": ")
		method, target, _ := strings.Cut(request, " ")
		w := do(h, method, target, "")
		got := fmt.Sprintf("%s: %d", request, w.Code)
		if to := w.Header().Get("Location"); to != "" {
			got += " to " + to
		} else if allow := w.Header().Get("Allow"); allow != "" {
			got += " [" + allow + "] " + w.Body.String()
		} else {
			got += " " + w.Body.String()
		}
		if got = strings.TrimSpace(got); got != want {
			t.Errorf("got %s\nwant %s", brief(got), want)
		}
	}
}

func TestRouterAnswers(t *testing.T) {
	b := routerOf("/b")
	c := routerOf("/c", "GET /{x}")
	root := routerOf("",
		"GET /top",
		routerOf("/users", "GET /", "GET /{username}", "POST /{username}"),
		routerOf("/users", "DELETE /{username}", "GET /{username}/files/{path...}"),
		routerOf("/bare", routerOf("", "GET "), "POST ", "GET /{id}"),
		routerOf("/t/{tenant}", routerOf("/items", "GET /", "GET /{id}")),
		routerOf("/end", "GET /{$}", "POST /x"),
		routerOf("/a", "GET /b/special", b), // below the prefix of another router
		c,
	)
	b.Include(c) // a second time, in a router that is included already
	b.Get("/late", reveal)
	root.Get("/own404", http.NotFoundHandler())
	root.NoMatch = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot) // the status is NoMatch's alone to say
		fmt.Fprint(w, "none", r.Pattern)
	})
	h := root.Handler()

	transcript(t, h, // what a route fits
		"GET /top: 200 GET /top",
		"GET /users/: 200 GET /users/{$}",
		"GET /users/Rick: 200 GET /users/{username} username=Rick",
		"HEAD /users/Rick: 200 GET /users/{username} username=Rick", // net/http sends no body
		"POST /users/Rick: 200 POST /users/{username} username=Rick",
		"DELETE /users/Rick: 200 DELETE /users/{username} username=Rick",
		"GET /users/Rick/files/a/b: 200 GET /users/{username}/files/{path...} username=Rick path=a/b",
		"GET /users/a%252Fb%20%EB%B3%80: 200 GET /users/{username} username=a%2Fb 변",
		"GET /bare: 200 GET /bare",
		"POST /bare: 200 POST /bare",
		"GET /t/acme/items/: 200 GET /t/{tenant}/items/{$} tenant=acme",
		"GET /t/a%2Fc/items/7: 200 GET /t/{tenant}/items/{id} tenant=a/c id=7",
		"GET /end/: 200 GET /end/{$}",
		"GET /a/b/c/1: 200 GET /a/b/c/{x} x=1",
		"GET /c/1: 200 GET /c/{x} x=1",
		"GET /a/b/late: 200 GET /a/b/late",
		"GET /a/b/special: 200 GET /a/b/special",
		"GET /own404: 404 404 page not found", // the handler's own, and so no case for NoMatch
	)
	transcript(t, h, // what is redirected to a route
		"GET /users?a=1&b=%20: 307 to /users/?a=1&b=%20",
		"GET /t/acme/items: 307 to /t/acme/items/",
		"GET /end: 307 to /end/",
		"GET /users/../top: 307 to /top",
		"GET //evil.example/users: 307 to /evil.example/users",
	)
	transcript(t, h, // what is NoMatch's
		"GET /: 418 none",
		"GET /nope: 418 none",
		"GET /users/Rick/: 418 none",
		"GET /users/a/b: 418 none",
		"GET /bare/: 418 none",
		"GET /t/acme/orders/7: 418 none",
		"GET *: 418 none",
		"DELETE /top: 418 [GET, HEAD] none",
		"CONNECT /top: 418 [GET, HEAD] none",
		"CONNECT example.com:443: 418 none",
		"PUT /users/Rick: 418 [DELETE, GET, HEAD, POST] none",
		"GET /end/x: 418 [POST] none",
		"POST /users: 418 [GET, HEAD] none", // no redirect to a path that has no POST
		"DELETE /bare: 418 [GET, HEAD, POST] none",
		"OPTIONS /bare: 418 [GET, HEAD, POST] none",
	)
}

// TestRouterTakesWhatOneServeMuxTakes: prefixes, and wildcards that seem to be in their way.
func TestRouterTakesWhatOneServeMuxTakes(t *testing.T) {
	transcript(t, routerOf("", routerOf("/users", "GET /"), routerOf("/{tenant}", "GET /items")).Handler(),
		"GET /users: 307 to /users/",
		"GET /users/items: 200 GET /{tenant}/items tenant=users",
		"DELETE /users: 405 [GET, HEAD] Method Not Allowed",
		"GET /nope: 404 Not Found",
	)
	transcript(t, routerOf("", "GET /{user}/settings", routerOf("/v1", "GET /items")).Handler(),
		"GET /v1/items: 200 GET /v1/items",
		"GET /v1/settings: 200 GET /{user}/settings user=v1",
		"GET /rick/settings: 200 GET /{user}/settings user=rick",
	)
	transcript(t, routerOf("", "GET /{file...}", routerOf("/users", "GET /{id}"), routerOf("/tasks", "POST ")).Handler(),
		"GET /app.js: 200 GET /{file...} file=app.js",
		"GET /users/7: 200 GET /users/{id} id=7",
		"POST /tasks: 200 POST /tasks",
		"DELETE /tasks: 405 [GET, HEAD, POST] Method Not Allowed",
	)
	transcript(t, routerOf("", "GET /{page}", routerOf("/v1", "POST ", "GET /{id}")).Handler(),
		"GET /about: 200 GET /{page} page=about",
		"GET /v1: 200 GET /{page} page=v1",
	)
	users := routerOf("/users", "DELETE /me", routerOf("/{id}", "DELETE ", "GET /posts"), routerOf("/me", "GET /posts"))
	transcript(t, users.Handler(),
		"DELETE /users/me: 200 DELETE /users/me",
		"GET /users/me/posts: 200 GET /users/me/posts",
	)
	transcript(t, routerOf("", "HEAD /{x}", routerOf("/a", "GET /x")).Handler(),
		"GET /a/x: 200 GET /a/x",
		"GET /x: 405 [HEAD] Method Not Allowed",
	)
}

// TestRouterOfTwoHundredRoutes: every route is reached, and every other method is a 405 that
// names the right ones.
func TestRouterOfTwoHundredRoutes(t *testing.T) {
	root := routerOf("")
	for i := range 25 {
		root.Include(routerOf(fmt.Sprintf("/r%d", i), "GET /", "GET /{id}", "PUT /{id}", "DELETE /{id}",
			routerOf("/{id}/parts", "GET ", "POST ", "GET /{part...}", "DELETE /{part}/last")))
	}
	h := root.Handler()
	allow := map[string][]string{}
	for _, r := range root.Routes() {
		path := wildcard.ReplaceAllString(r.Path, "x")
		if w := do(h, r.Method, path, ""); w.Code != 200 || !strings.HasPrefix(w.Body.String(), r.Method+" "+r.Path) {
			t.Fatalf("%s %s: got %d %s", r.Method, path, w.Code, brief(w.Body.String()))
		}
		allow[path] = append(allow[path], r.Method)
		if r.Method == "GET" || strings.HasSuffix(path, "/last") { // which is below {part...} too
			allow[path] = append(allow[path], "GET", "HEAD")
		}
	}
	for path, methods := range allow {
		if t.Failed() {
			break // one of two hundred is enough
		}
		slices.Sort(methods)
		methods = slices.Compact(methods)
		transcript(t, h, fmt.Sprintf("PATCH %s: 405 [%s] Method Not Allowed", path, strings.Join(methods, ", ")))
	}
}

// TestRouterMiddleware: it runs behind the match, in order, and is made once for each route.
func TestRouterMiddleware(t *testing.T) {
	var made, calls []string
	note := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			made = append(made, name)
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls = append(calls, name+" "+r.Pattern)
				next.ServeHTTP(w, r)
			})
		}
	}
	sub := routerOf("/sub", "GET /{x}/")
	sub.Use(note("3"), note("4")) // after the route, and still around it
	root := routerOf("", "GET /y", sub)
	root.Use(note("1"))
	root.Use(note("2"))
	h := root.Handler()
	for _, tt := range []struct {
		method, target string
		want           []string
	}{
		{"GET", "/sub/a/", []string{"1 GET /sub/{x}/{$}", "2 GET /sub/{x}/{$}", "3 GET /sub/{x}/{$}", "4 GET /sub/{x}/{$}"}},
		{"GET", "/y", []string{"1 GET /y", "2 GET /y"}},
		{"GET", "/sub/a", nil}, // a redirect
		{"GET", "/sub/a/b", nil},
		{"POST", "/sub/a/", nil},
	} {
		calls = nil
		if do(h, tt.method, tt.target, ""); !slices.Equal(calls, tt.want) {
			t.Errorf("%s %s: got %q, want %q", tt.method, tt.target, calls, tt.want)
		}
	}
	if slices.Sort(made); strings.Join(made, "") != "112234" {
		t.Errorf("the middleware was called as %q, want each once for each route below it", made)
	}
}

type namedHandlers struct{}

func (namedHandlers) readUserID(http.ResponseWriter, *http.Request) {}
func read_user(http.ResponseWriter, *http.Request)                  {}

func TestRoutesIsTheWholeTable(t *testing.T) {
	root, outer := NewRouter("", "a", "l", "l"), NewRouter("/outer", "out")
	inner, last := NewRouter("/{in}", "in"), NewRouter("/last", "last")
	inner.Get("/", http.HandlerFunc(namedHandlers{}.readUserID))
	inner.Handle("PATCH", "", http.HandlerFunc(read_user)).Example = `{}`
	outer.Delete("/x", struct{ http.Handler }{})
	outer.Get("/y", http.HandlerFunc(read_user)).Summary = "Mine"
	last.Post("", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	outer.Include(inner)
	outer.Include(last)
	root.Include(outer)
	root.Include(inner)
	root.Use(nil) // Handler would panic: no middleware is called for a list
	want := []string{
		`{"method":"DELETE","path":"/outer/x","tags":["a","l","l","out"],"summary":"","example":""}`,
		`{"method":"GET","path":"/outer/y","tags":["a","l","l","out"],"summary":"Mine","example":""}`,
		`{"method":"GET","path":"/outer/{in}/","tags":["a","l","l","out","in"],"summary":"Read User ID","example":""}`,
		`{"method":"PATCH","path":"/outer/{in}","tags":["a","l","l","out","in"],"summary":"Read_user","example":"{}"}`,
		`{"method":"POST","path":"/outer/last","tags":["a","l","l","out","last"],"summary":"","example":""}`,
		`{"method":"GET","path":"/{in}/","tags":["a","l","l","in"],"summary":"Read User ID","example":""}`,
		`{"method":"PATCH","path":"/{in}","tags":["a","l","l","in"],"summary":"Read_user","example":"{}"}`,
	}
	var got []string
	for _, r := range root.Routes() {
		line, _ := json.Marshal(r)
		got = append(got, string(line))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRouterPanicsOnAMistakeAndNamesIt(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		line       func() // the one with the mistake
	}{
		{"prefix without a slash", `router "users"`, func() { NewRouter("users") }},
		{"prefix that ends with a slash", `router "/users/"`, func() { NewRouter("/users/") }},
		{"half a wildcard in the prefix", `"GET /{x/"`, func() { NewRouter("/{x") }},
		{"wildcard of many segments in the prefix", `"GET /{x...}/"`, func() { NewRouter("/{x...}") }},
		{"path without a slash", "route GET /ux: a path starts with a slash", func() { NewRouter("/u").Get("x", reveal) }},
		{"bad wildcard", `"GET /u/{id"`, func() { NewRouter("/u").Get("/{id", reveal) }},
		{"no method", "route  /u/x", func() { NewRouter("/u").Handle("", "/x", reveal) }},
		{"space in the method", "route G T /u/x", func() { NewRouter("/u").Handle("G T", "/x", reveal) }},
		{"tab in the method", "route G\tT /u/x", func() { NewRouter("/u").Handle("G\tT", "/x", reveal) }},
		{"nil handler", "route GET /u/x: the handler is nil", func() { NewRouter("/u").Get("/x", nil) }},
		{"nil func", "route GET /u/x: the handler is nil", func() { NewRouter("/u").Get("/x", http.HandlerFunc(nil)) }},
		{"neither prefix nor path", `"GET "`, func() { routerOf("", "GET ").Handler() }},
		{"duplicate", `"GET /x"`, func() { routerOf("", "GET /x", routerOf("", "GET /x")).Handler() }},
		{"conflict", `"GET /u/a/{y}"`, func() { routerOf("/u", "GET /{x}/b", "GET /a/{y}").Handler() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustPanic(t, tt.line); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want it to name %s", got, tt.want)
			}
		})
	}
}

// TestDocsListsTheRoutes: those that there are when it is first asked, and as JSON that can't end
// the script element that it is in.
func TestDocsListsTheRoutes(t *testing.T) {
	root := NewRouter("")
	root.Get("/docs", root.Docs())
	h := root.Handler()
	root.Use(nil) // no middleware is called for a page
	later := NewRouter("/later", "</script>")
	later.Post("", reveal).Example = "</script><script>alert(1)</script><!--<script>"
	root.Include(later)

	w := do(h, "GET", "/docs", "")
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("got %d %s, want a page", w.Code, w.Header())
	}
	table, _ := json.Marshal(root.Routes()) // with \u003c for <
	m := regexp.MustCompile(`(?s)<script[^>]*application/json[^>]*>(.*?)</script>`).FindStringSubmatch(w.Body.String())
	if m == nil || m[1] != string(table) {
		t.Errorf("the page lists\n%s, want\n%s", brief(strings.Join(m, "\n")), table)
	}
}

func TestDocsPolicyLetsNothingRunButThePagesOwn(t *testing.T) {
	w := do(NewRouter("").Docs(), "GET", "/docs", "")
	want := []string{
		"base-uri 'none'", "connect-src 'self'", "default-src 'none'", "form-action 'none'", "frame-ancestors 'none'",
	}
	inline := regexp.MustCompile(`(?s)<(script|style)([^>]*)>(.*?)</(?:script|style)>`)
	for _, m := range inline.FindAllStringSubmatch(w.Body.String(), -1) {
		if strings.Contains(m[2], "application/json") {
			continue // data: it does not run, and needs no hash
		}
		sum := sha256.Sum256([]byte(m[3]))
		want = append(want, m[1]+"-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	got := slices.Sorted(strings.SplitSeq(w.Header().Get("Content-Security-Policy"), "; "))
	got = slices.DeleteFunc(got, func(s string) bool { return s == "img-src data:" }) // an icon in the page
	if slices.Sort(want); !slices.Equal(got, want) {
		t.Errorf("the policy is\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// What the policy would block must not be there to begin with.
	if s := regexp.MustCompile(`<[^>]*\s(on[a-z]+|style|src)=|innerHTML|https?://`).FindString(w.Body.String()); s != "" {
		t.Errorf("the page holds %q", brief(s))
	}
}

// BenchmarkRouter sets a Router beside ServeMuxes that are nested with StripPrefix, and beside one
// ServeMux with all patterns in it.
func BenchmarkRouter(b *testing.B) {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	mux := func(pattern string, h http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle(pattern, h)
		return mux
	}
	mount := func(prefix string, h http.Handler) http.Handler {
		return mux(prefix+"/", http.StripPrefix(prefix, h))
	}
	users := NewRouter("/users")
	users.Get("/{username}", ok)
	nested := mount("/users", mux("GET /{username}", ok))
	for _, bb := range []struct {
		name, target string
		h            http.Handler
	}{
		{"one level/Router", "/users/Rick", routerOf("", users).Handler()},
		{"one level/StripPrefix", "/users/Rick", nested},
		{"one level/one ServeMux", "/users/Rick", mux("GET /users/{username}", ok)},
		{"two levels/Router", "/v1/users/Rick", routerOf("", routerOf("/v1", users)).Handler()},
		{"two levels/StripPrefix", "/v1/users/Rick", mount("/v1", nested)},
		{"two levels/one ServeMux", "/v1/users/Rick", mux("GET /v1/users/{username}", ok)},
	} {
		b.Run(bb.name, func(b *testing.B) { benchmarkHandler(b, bb.h, bb.target) })
	}
}

// ---- errors.go

func ExampleErrorf() {
	items := map[string]string{"1": "Boostcamp"}
	mux := http.NewServeMux()
	mux.Handle("GET /v2/{item_id}", Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		id := r.PathValue("item_id")
		item, ok := items[id]
		if !ok {
			return Errorf(http.StatusNotFound, "아이템을 찾을 수 없습니다 [id: %s]", id)
		}
		return WriteJSON(w, http.StatusOK, item)
	}))
	h := Observe(slog.New(slog.DiscardHandler), mux)

	w := do(h, "GET", "/v2/5", "", "X-Request-Id", "example")
	fmt.Println(w.Code, w.Header().Get("Content-Type"))
	fmt.Println(w.Body)
	// Output:
	// 404 application/problem+json
	// {"type":"about:blank","title":"Not Found","status":404,"detail":"아이템을 찾을 수 없습니다 [id: 5]","request_id":"example"}
}

// problemOf checks that a reply is a whole problem (RFC 9457), and returns it.
func problemOf(t *testing.T, w *httptest.ResponseRecorder) (p Problem) {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("status %d has Content-Type %q, want application/problem+json", w.Code, got)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("status %d has body %q: %v", w.Code, brief(w.Body.String()), err)
	}
	if p.Status != w.Code || p.Title != http.StatusText(w.Code) || p.Type != "about:blank" {
		t.Errorf("the problem of a %d is %+v", w.Code, p)
	}
	if p.RequestID == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("the problem's request_id is %q, the header's %q", p.RequestID, w.Header().Get("X-Request-Id"))
	}
	return p
}

// observe serves one request with an endpoint, and returns the reply and the log.
func observe(method, target, body string, e Endpoint, header ...string) (*httptest.ResponseRecorder, string) {
	log, lines := newLog()
	w := do(Observe(log, e), method, target, body, header...)
	return w, lines.String()
}

// fail is an endpoint that returns err.
func fail(err error) Endpoint { return func(http.ResponseWriter, *http.Request) error { return err } }

var logLine = regexp.MustCompile(`^time=\S+ level=(\w+) .* status=(\d+) .* request_id=\S+` +
	`(?: cause=(\w+|".*?"))?(?: (stack)=".*panic\(.*")?\n$`)

// logged checks that a log is one line, and shortens it to its level, status, cause and "stack".
func logged(t *testing.T, log string) string {
	t.Helper()
	m := logLine.FindStringSubmatch(log)
	if m == nil {
		t.Fatalf("the log is %q, want one whole line", brief(log))
	}
	return strings.TrimSpace(strings.Join(m[1:], " "))
}

// TestFailure: what the client is told, and what the log.
func TestFailure(t *testing.T) {
	panics := func(p any) Endpoint { return func(http.ResponseWriter, *http.Request) error { panic(p) } }
	write := func(status int, v any) Endpoint {
		return func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, status, v) }
	}
	after := func(begin func(http.ResponseWriter), e Endpoint) Endpoint {
		return func(w http.ResponseWriter, r *http.Request) error {
			begin(w)
			return e(w, r)
		}
	}
	half := func(w http.ResponseWriter) { io.WriteString(w, "half") }
	flush := func(w http.ResponseWriter) { http.NewResponseController(w).Flush() }
	begin := func(w http.ResponseWriter) { w.WriteHeader(200) }
	switched := func(w http.ResponseWriter) { w.WriteHeader(101) }
	inWrapped := func(w http.ResponseWriter, r *http.Request) error {
		fail(Errorf(404, "nothing")).ServeHTTP(wrapped{w}, r)
		return nil
	}
	secret := errors.New("dial: secret")
	tooLarge := fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 9})
	canceled := Errorf(503, "later").Because(context.Canceled)
	const (
		here, gone = false, true
		aborted    = "net/http: abort Handler" // so that what the client has does not look whole
	)
	for _, tt := range []struct {
		name   string
		client bool
		e      Endpoint
		reply  string // the status and the detail
		log    string
	}{
		{"HTTPError", here, fail(Errorf(404, "no item %d", 5)), "404 no item 5", `INFO 404 "404 no item 5"`},
		{"with a cause", here, fail(Errorf(409, "taken").Because(secret)), "409 taken", `INFO 409 "409 taken: dial: secret"`},
		{"wrapped", here, fail(fmt.Errorf("find: %w", Errorf(400, "odd"))), "400 odd", `INFO 400 "find: 400 odd"`},
		{"in a wrapped ResponseWriter", here, inWrapped, "404 nothing", `INFO 404 "404 nothing"`},
		{"5xx", here, fail(Errorf(500, "sorry")), "500 sorry", `ERROR 500 "500 sorry"`},
		{"last status", here, fail(Errorf(599, "odd")), "599 odd", `ERROR 599 "599 odd"`},
		{"status beyond the last", here, fail(Errorf(600, "secret")), "500 ", `ERROR 500 "600 secret"`},
		{"status that is no error", here, fail(Errorf(399, "secret")), "500 ", `ERROR 500 "399 secret"`},
		{"no status", here, write(1000, 1), "500 ", `ERROR 500 "panic: invalid WriteHeader code 1000" stack`},
		{"any other error", here, fail(secret), "500 ", `ERROR 500 "dial: secret"`},
		{"any other, client gone", gone, fail(secret), "500 ", `ERROR 500 "dial: secret"`},
		{"too large", here, fail(tooLarge), "413 the body is larger than 9 bytes", `INFO 413 "read: http: request body too large"`},
		{"no JSON", here, write(200, math.NaN()), "500 ", `ERROR 500 "encode the reply: json: unsupported value: NaN"`},
		{"panic", here, panics(secret), "500 ", `ERROR 500 "panic: dial: secret" stack`},
		{"canceled, client gone", gone, fail(canceled), aborted, `INFO 499 "503 later: context canceled"`},
		{"canceled by another", here, fail(context.Canceled), "500 ", `ERROR 500 "context canceled"`},
		{"error after Write", here, after(half, fail(secret)), aborted, `ERROR 200 "dial: secret"`},
		{"error after Flush", here, after(flush, fail(io.EOF)), aborted, "ERROR 200 EOF"},
		{"error after WriteHeader", here, after(begin, fail(io.EOF)), aborted, "ERROR 200 EOF"},
		{"error after 101", here, after(switched, fail(io.EOF)), aborted, "ERROR 101 EOF"},
		{"panic after Write", here, after(half, panics(secret)), aborted, `ERROR 200 "panic: dial: secret" stack`},
		{"panic after Write, client gone", gone, after(half, panics("oh")), aborted, `ERROR 200 "panic: oh" stack`},
		{"abort after Write", here, after(half, panics(http.ErrAbortHandler)), aborted, "ERROR 200"},
		{"abort, client gone", gone, panics(http.ErrAbortHandler), aborted, "INFO 499"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			if tt.client == gone {
				leave()
			}
			log, lines := newLog()
			w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			got := func() (reply string) {
				defer func() {
					if p := recover(); p != nil {
						reply = fmt.Sprint(p)
					}
				}()
				Observe(log, tt.e).ServeHTTP(w, r)
				return fmt.Sprint(w.Code, " ", problemOf(t, w).Detail)
			}()
			if got != tt.reply || got == aborted && w.Body.Len() > len("half") {
				t.Errorf("got %q, want %q; the client has %q", got, tt.reply, brief(w.Body.String()))
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("the client is told %q", w.Body)
			}
			if got := logged(t, lines.String()); got != tt.log {
				t.Errorf("the log has\n%s, want\n%s", got, tt.log)
			}
		})
	}
}

// wrapped is a ResponseWriter as middleware makes them.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestBecauseLeavesTheErrorItselfAlone(t *testing.T) {
	shared := Errorf(409, "taken")
	shared.Because(io.EOF)
	if shared.Error() != "409 taken" {
		t.Errorf("got %q, though others may share it", shared)
	}
}

func TestErrorReplyIsWholeAndHasNothingOfTheReplyThatFailed(t *testing.T) {
	odd := Invalid(FieldError{[]string{"path", "id"}, "is odd"})
	odd.Header.Set("Retry-After", "7")
	w, _ := observe("GET", "/", "", func(w http.ResponseWriter, r *http.Request) error {
		const stale = "Content-Length Content-Encoding Content-Range Content-Disposition ETag Last-Modified"
		for name := range strings.FieldsSeq(stale + " Content-Type Cache-Control") {
			w.Header().Set(name, "5")
		}
		return odd
	}, "X-Request-Id", "x")
	if got, want := w.Header(), (http.Header{
		"Cache-Control": {"no-store"}, "Content-Type": {"application/problem+json"}, "Retry-After": {"7"},
		"X-Content-Type-Options": {"nosniff"}, "X-Request-Id": {"x"},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("got the headers\n%v, want\n%v", got, want)
	}
	want := `{"type":"about:blank","title":"Unprocessable Entity","status":422,"detail":"path.id is odd",` +
		`"errors":[{"loc":["path","id"],"msg":"is odd"}],"request_id":"x"}` + "\n"
	if got := w.Body.String(); got != want {
		t.Errorf("got the body\n%s, want\n%s", brief(got), want)
	}
}

// TestObserveLeavesTheConnectionInReach needs a real one: a recorder takes a 103 for the reply.
func TestObserveLeavesTheConnectionInReach(t *testing.T) {
	srv := httptest.NewServer(Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		w.WriteHeader(http.StatusEarlyHints) // does not begin the reply
		return Errorf(404, "nothing")
	})))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("got %s, want 404", resp.Status)
	}
}

func TestLogHasOneLineARequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		log, lines := newLog()
		mux := http.NewServeMux()
		mux.Handle("GET /users/{username}", Endpoint(func(w http.ResponseWriter, r *http.Request) error {
			time.Sleep(5 * time.Second)
			io.WriteString(w, "123")
			_, err := io.WriteString(w, "45")
			return err
		}))
		mux.Handle("GET /nothing", fail(nil))
		h := Observe(log, mux)
		do(h, "GET", "/users/a%0Alevel=ERROR%1b%5B2J%22", "", "X-Request-Id", "a")
		do(h, "HEAD", "/users/x", "", "X-Request-Id", "b")
		do(h, "GET", "/nothing", "", "X-Request-Id", "c")
		do(h, "GET", "/nowhere", "", "X-Request-Id", "d")
		got := regexp.MustCompile(`(?m)^time=\S+ `).ReplaceAllString(lines.String(), "")
		if want := `level=INFO msg=request method=GET path="/users/a\nlevel=ERROR\x1b[2J\"" route=/users/{username} ` +
			`status=200 bytes=5 duration=5s request_id=a
level=INFO msg=request method=HEAD path=/users/x route=/users/{username} status=200 bytes=0 duration=5s request_id=b
level=INFO msg=request method=GET path=/nothing route=/nothing status=200 bytes=0 duration=0s request_id=c
level=INFO msg=request method=GET path=/nowhere route="" status=404 bytes=19 duration=0s request_id=d
`; got != want {
			t.Errorf("got\n%s, want\n%s", got, want)
		}
	})
}

func TestRequestID(t *testing.T) {
	long := strings.Repeat("x", 64)
	made := map[string]bool{}
	for sent, kept := range map[string]bool{
		"abc": true, "A-z_0.9": true, long: true, long + "x": false, "": false,
		"a b": false, "a\nb": false, "a\n": false, "a\x00": false, `a"b`: false, "é": false, "\xff": false, "<b>": false,
	} {
		w, log := observe("GET", "/", "", fail(nil), "X-Request-Id", sent)
		got := w.Header().Get("X-Request-Id")
		if !strings.HasSuffix(log, " request_id="+got+"\n") {
			t.Errorf("the reply says %q, the log %q", got, log)
		}
		if kept && got != sent || !kept && (made[got] || !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(got)) {
			t.Errorf("%q became %q", sent, got)
		}
		made[got] = true
	}
}

func TestEndpointWithoutObserveIsObserved(t *testing.T) {
	defer log.SetFlags(log.Flags()) // which slog.SetDefault changes
	defer log.SetOutput(log.Writer())
	defer slog.SetDefault(slog.Default())
	log, lines := newLog()
	slog.SetDefault(log)
	problemOf(t, do(fail(Errorf(404, "nothing")), "GET", "/", ""))
	if got, want := logged(t, lines.String()), `INFO 404 "404 nothing"`; got != want {
		t.Errorf("the log has %s, want %s", got, want)
	}
}

// closedWriter is a ResponseWriter that can't be written to, or flushed.
type closedWriter struct{ http.ResponseWriter }

func (closedWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestReplyThatCannotBeWrittenIsInTheLog(t *testing.T) {
	reply := func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, 201, "x") }
	flush := func(w http.ResponseWriter, r *http.Request) error { return http.NewResponseController(w).Flush() }
	const closed = "write the reply: io: read/write on closed pipe"
	for want, e := range map[string]Endpoint{
		`ERROR 201 "` + closed + `"`:                        reply,
		`INFO 404 "404 nothing\n` + closed + `"`:            fail(Errorf(404, "nothing")),
		`ERROR 500 "feature not supported\n` + closed + `"`: flush, // and so it did not begin the reply
	} {
		log, lines := newLog()
		func() {
			defer func() { recover() }() // the abort
			Observe(log, e).ServeHTTP(closedWriter{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
		}()
		if got := logged(t, lines.String()); got != want {
			t.Errorf("the log has\n%s, want\n%s", got, want)
		}
	}
}

type everyKind struct {
	Name  string            `json:"name"`
	Age   int               `json:"age"`
	Small int8              `json:"small"`
	Big   uint64            `json:"big"`
	Score float64           `json:"score"`
	Ratio float32           `json:"ratio"`
	Ok    bool              `json:"ok"`
	List  []string          `json:"list"`
	Pair  [2]string         `json:"pair"`
	Map   map[string]string `json:"map"`
	When  time.Time         `json:"when"`
	Any   fmt.Stringer      `json:"any"`
	Sub   struct {
		N int `json:"n"`
	} `json:"sub"`
}

// unborn is what Validate returns for each negative age: a caller must not change it.
var unborn = []FieldError{{[]string{"age"}, "must not be negative"}, {[]string{"name"}, "must not be given yet"}}

func (b *everyKind) Validate() []FieldError {
	if b.Age < 0 {
		return unborn
	}
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request) error {
	var b everyKind
	if err := ReadJSON(w, r, &b); err != nil {
		return err
	}
	return WriteJSON(w, http.StatusOK, b.Name)
}

// described is a reply in one line: the status and the detail, which must be made of the fields.
func described(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	if w.Code == http.StatusOK && w.Header().Get("Content-Type") == "application/json" {
		return "200 " + strings.TrimSpace(w.Body.String())
	}
	p := problemOf(t, w)
	var fields []string
	for _, f := range p.Errors {
		fields = append(fields, strings.Join(f.Loc, ".")+" "+f.Msg)
	}
	if got := strings.Join(fields, "; "); (got != "" || w.Code == 422) && got != p.Detail {
		t.Errorf("the fields are %q, and the detail is %q", got, p.Detail)
	}
	return fmt.Sprint(w.Code, " ", p.Detail)
}

func TestReadJSON(t *testing.T) {
	long := strings.Repeat("한", 64)
	for _, tt := range []struct{ name, body, want string }{
		{"an object", `{"name": "<b>&변", "age": 70}`, `200 "<b>&변"`},
		{"in white space", " {} \r\n\t", `200 ""`},
		{"nothing", ``, "400 body is not JSON: see byte 0"},
		{"two values", `{} {}`, "400 body is not JSON: see byte 4"},
		{"too deep", strings.Repeat("[", 100_000), "400 body is not JSON: see byte 10001"},
		{"not UTF-8", "{\"name\": \"\xff\"}", "400 body is not UTF-8"},
		{"just small enough", `"` + strings.Repeat("x", 1<<20-2) + `"`, "422 body must be an object"},
		{"null", ` null `, "422 body must not be null"},
		{"an unknown field", `{"nme": "Rick"}`, "422 body.nme is not a field here"},
		{"a long one", `{"` + long + long + `": 1}`, "422 body." + long + " is not a field here"},
		{"no string", `{"name": 1}`, "422 body.name must be a string"},
		{"no integer", `{"age": "1"}`, "422 body.age must be an integer, and not too large"},
		{"a fraction", `{"age": 1.5}`, "422 body.age must be an integer, and not too large"},
		{"too large for its field", `{"small": 128}`, "422 body.small must be an integer, and not too large"},
		{"a sign", `{"big": -1}`, "422 body.big must be an integer, and not too large"},
		{"no number", `{"score": true}`, "422 body.score must be a number"},
		{"too large a number", `{"ratio": 1e999}`, "422 body.ratio must be a number"},
		{"no boolean", `{"ok": 1}`, "422 body.ok must be true or false"},
		{"no list", `{"list": {}}`, "422 body.list must be an array"},
		{"no array", `{"pair": {}}`, "422 body.pair must be an array"},
		{"no map", `{"map": []}`, "422 body.map must be an object"},
		{"no time", `{"when": "now"}`, "422 body does not have the right shape"},
		{"what can't be given", `{"any": {}}`, "422 body.any must be of another type"},
		{"the wrong type inside", `{"sub": {"n": "x"}}`, "422 body.sub.n must be an integer, and not too large"},
		{"all at fault", `{"age": -1}`, "422 body.age must not be negative; body.name must not be given yet"},
		{"all at fault again", `{"age": -1}`, "422 body.age must not be negative; body.name must not be given yet"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := observe("POST", "/", tt.body, readBody, "Content-Type", "application/json")
			if got := described(t, w); got != tt.want {
				t.Errorf("got %s, want %s", brief(got), tt.want)
			}
		})
	}
}

// brokenBody fails as a connection does.
type brokenBody struct{ err error }

func (b brokenBody) Read([]byte) (int, error) { return 0, b.err }

func TestReadJSONOfABodyThatIsNotRead(t *testing.T) {
	const js = "application/json"
	const noJSON, tooLarge = "415 the Content-Type must be application/json", "413 the body is larger than 1048576 bytes"
	for _, tt := range []struct {
		name, contentType string
		body              io.Reader
		length            int64 // -1 if it is not announced
		want              string
	}{
		{"JSON with a charset", js + "; charset=utf-8", strings.NewReader("{}"), 2, `200 ""`},
		{"form", "application/x-www-form-urlencoded", strings.NewReader("{}"), 2, noJSON},
		{"half a content type", js + ";;", strings.NewReader("{}"), 2, noJSON},
		{"too slow", js, brokenBody{os.ErrDeadlineExceeded}, 9, "408 the body did not arrive in time"},
		{"cut off", js, brokenBody{io.ErrUnexpectedEOF}, 9, "400 the body could not be read to its end"},
		{"too large", js, strings.NewReader(strings.Repeat("[", 1<<20+1)), -1, tooLarge},
		{"too large, and not read", js, brokenBody{io.ErrUnexpectedEOF}, 1<<20 + 1, tooLarge}, // see Expect: 100-continue
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", tt.body)
			r.ContentLength = tt.length
			r.Header.Set("Content-Type", tt.contentType)
			w := httptest.NewRecorder()
			Observe(discard, Endpoint(readBody)).ServeHTTP(w, r)
			if got := described(t, w); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// FuzzDecodeJSON: what is accepted can be sent back and is accepted again, as the same. All else
// is the client's fault: a 400 if it is no JSON, and else a 422; short, and with the place.
func FuzzDecodeJSON(f *testing.F) {
	for _, seed := range []string{
		`{"name": "\ud800", "age": 70, "sub": {"n": 1}, "when": "2026-01-02T03:04:05.6+07:00"}`, `null`, `[[[[`, `{} {}`,
		"{\"name\": \"\xff\"}", `{"\u0000": 1}`, `{"a\"b": 1}`, `{"ratio": 1e400}`, `{"map": {"x": 1}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v, again everyKind
		err := DecodeJSON(data, &v, "body", "input")
		if err == nil {
			first, _ := json.Marshal(v)
			err := DecodeJSON(first, &again)
			if second, _ := json.Marshal(again); err != nil || !bytes.Equal(first, second) {
				t.Errorf("%q was accepted, but then %q: %v", data, first, err)
			}
			return
		}
		want := http.StatusBadRequest
		if json.Valid(data) && utf8.Valid(data) {
			want = http.StatusUnprocessableEntity
		}
		if e, ok := errors.AsType[*HTTPError](err); !ok || e.Status != want || len(e.Detail) > 600 ||
			!strings.HasPrefix(e.Detail, "body.input") {
			t.Errorf("%q: got %v, want a %d of body.input", data, err, want)
		}
	})
}

func TestPathInt(t *testing.T) {
	const wrong = "0 422 path.id must be an integer of at most 64 bits"
	for in, want := range map[string]string{
		"5": "5 <nil>", "+5": "5 <nil>", "-5": "-5 <nil>", "005": "5 <nil>", "0": "0 <nil>",
		"9223372036854775807": "9223372036854775807 <nil>", "-9223372036854775808": "-9223372036854775808 <nil>",
		"9223372036854775808": wrong, "": wrong, "x": wrong, "5.0": wrong, "5e0": wrong, "0x5": wrong, "1_000": wrong,
		" 5": wrong, "5 ": wrong, "٥": wrong, "--5": wrong, "+": wrong, "5\x00": wrong,
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetPathValue("id", in)
		if got := fmt.Sprint(PathInt(r, "id")); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

// ---- tasks.go

func ExampleTasks() {
	tasks := NewTasks(Config{
		Kinds: map[string]Kind{"greet": {
			Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
				var name string
				err := json.Unmarshal(input, &name)
				return "hello " + name, err
			},
		}},
		Log: slog.New(slog.DiscardHandler),
	})
	if err := tasks.Start(""); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	defer tasks.Stop(ctx)

	task, err := tasks.Submit("greet", json.RawMessage(`"Rick"`))
	fmt.Println(task.Status, err)
	task, err = tasks.Wait(ctx, task.ID)
	fmt.Println(task.Status, string(task.Result), err)
	// Output:
	// queued <nil>
	// succeeded "hello Rick" <nil>
}

var testKinds = map[string]Kind{
	"echo":   {Run: runEcho},
	"refuse": {Run: runEcho, Check: func(json.RawMessage) (json.RawMessage, error) { return nil, errors.New("refused") }},
	"fill":   {Run: runEcho, Check: func(json.RawMessage) (json.RawMessage, error) { return json.RawMessage("2"), nil }},
	"second": {Run: func(ctx context.Context, _ json.RawMessage, progress func(float64)) (any, error) {
		for _, p := range []float64{0.5, 0.1, -1, math.NaN()} {
			progress(p)
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Second):
			return nil, nil
		}
	}},
	"fail":  {Run: runOf(func() (any, error) { return "x", errors.New("secret") })},
	"panic": {Run: runOf(func() (any, error) { panic("secret") })},
	"exit":  {Run: runOf(func() (any, error) { runtime.Goexit(); return nil, nil })},
	"NaN":   {Run: runOf(func() (any, error) { return math.NaN(), nil })},
	"deep":  {Run: runOf(func() (any, error) { return json.RawMessage(nestedTo(10_000)), nil })},
}

func runEcho(_ context.Context, input json.RawMessage, _ func(float64)) (any, error) {
	return input, nil
}

// runOf goes further than progress can.
func runOf(f func() (any, error)) Run {
	return func(_ context.Context, _ json.RawMessage, progress func(float64)) (any, error) {
		progress(7)
		return f()
	}
}

func nestedTo(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }

// errorText is a Config.Error that tells the client everything.
func errorText(err error) json.RawMessage { return json.RawMessage(strconv.Quote(err.Error())) }

// startTasks returns tasks that are stopped at the end of the test, with one worker if c does not say how many.
func startTasks(t testing.TB, c Config, journal string) *Tasks {
	t.Helper()
	if c.Kinds == nil {
		c.Kinds = testKinds
	}
	if c.Error == nil {
		c.Error = errorText
	}
	c.Log, c.Workers = cmp.Or(c.Log, discard), cmp.Or(c.Workers, 1)
	tasks := NewTasks(c)
	fatalIf(t, tasks.Start(journal))
	t.Cleanup(func() { stopWithin(tasks, 0) })
	return tasks
}

func stopWithin(tasks *Tasks, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return tasks.Stop(ctx)
}

func submit(t testing.TB, tasks *Tasks, kind, input string) Task {
	t.Helper()
	task, err := tasks.Submit(kind, json.RawMessage(input))
	fatalIf(t, err)
	return task
}

func wait(t testing.TB, tasks *Tasks, id string) Task {
	t.Helper()
	task, err := tasks.Wait(t.Context(), id)
	fatalIf(t, err)
	return task
}

func submitAndWait(t testing.TB, tasks *Tasks, kind, input string) Task {
	t.Helper()
	return wait(t, tasks, submit(t, tasks, kind, input).ID)
}

// inputsOf says which tasks these are, if each has an input of its own.
func inputsOf(tasks []Task) (s string) {
	for _, task := range tasks {
		s += string(task.Input) + " "
	}
	return strings.TrimSpace(s)
}

// stateOf is the status, the attempt, the progress, and the result or the error.
func stateOf(task Task) string {
	return fmt.Sprintf("%s %d %v %s%s", task.Status, task.Attempt, task.Progress, task.Result, task.Error)
}

func fatalIf(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantEqual(t testing.TB, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s:\ngot  %s\nwant %s", what, brief(fmt.Sprintf("%+v", got)), brief(fmt.Sprintf("%+v", want)))
	}
}

func wantCount(t testing.TB, text, part string, want int) {
	t.Helper()
	if got := strings.Count(text, part); got != want {
		t.Errorf("%d times %q, want %d, in %s", got, part, want, brief(text))
	}
}

func TestTaskFromQueuedToItsEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks := startTasks(t, Config{}, "")
		begin := time.Now().UTC()
		first, second := submit(t, tasks, "second", "5"), submit(t, tasks, "second", "5")
		synctest.Wait()
		ended, end := context.WithCancel(t.Context())
		end()
		soon, err := tasks.Wait(ended, second.ID) // returns the task as it is
		fatalIf(t, err)
		for _, tt := range []struct{ got, want Task }{
			{first, Task{ID: first.ID, Status: Queued}},
			{tasks.List("", 2)[1], Task{ID: first.ID, Status: Running, Attempt: 1, Progress: 0.5, StartedAt: begin}},
			{soon, Task{ID: second.ID, Status: Queued}},
			{wait(t, tasks, second.ID), Task{ID: second.ID, Status: Succeeded, Attempt: 1, Progress: 1,
				Result: json.RawMessage("null"), StartedAt: begin.Add(time.Second), FinishedAt: begin.Add(2 * time.Second)}},
		} {
			tt.want.Kind, tt.want.Input, tt.want.CreatedAt = "second", json.RawMessage("5"), begin
			wantEqual(t, "the task", tt.got, tt.want)
		}
	})
}

func TestTaskIsRefusedFailsOrSucceedsAlone(t *testing.T) {
	const failed = `failed 1 1 {"detail":"the task failed"}`
	for _, tt := range []struct {
		kind, input string
		error       func(error) json.RawMessage
		want, log   string
	}{
		{"fill", "1", nil, "succeeded 1 1 2", ""},
		{"refuse", "1", nil, "refused", ""},
		{"echo", "", nil, "succeeded 1 1 null", ""},
		{"echo", `"<b>&아이템"`, nil, `succeeded 1 1 "<b>&아이템"`, ""},
		{"echo", "{", nil, "unexpected end of JSON input", ""},
		{"echo", nestedTo(10_000), nil, "it is nested too deeply", ""}, // for the journal
		{"deep", "", nil, "succeeded 1 1 [[[", "will run it again"},    // which can't take its result
		{"nope", "", nil, ErrUnknownKind.Error(), ""},
		{"fail", "", nil, `failed 1 1 "secret"`, "cause=secret"},
		{"fail", "", func(error) json.RawMessage { return nil }, failed, "cause=secret"},
		{"fail", "", func(error) json.RawMessage { panic("x") }, failed, "cause=secret"},
		{"panic", "", nil, `failed 1 1 "panic: secret`, `cause="panic: secret\ngoroutine`}, // and its stack
		{"exit", "", nil, `failed 1 1 "the task ended its goroutine"`, `cause="the task ended its goroutine"`},
		{"NaN", "", nil, `failed 1 1 "json: unsupported value`, `cause="json: unsupported value: NaN"`},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Error: tt.error, Log: log}, journalOf(t))
			input := json.RawMessage(tt.input)
			task, err := tasks.Submit(tt.kind, input)
			got := fmt.Sprint(err)
			clear(input) // the caller's own: the task has a copy
			if err == nil {
				got = stateOf(wait(t, tasks, task.ID))
			}
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s(%s): got %s, want %s", tt.kind, brief(tt.input), brief(got), tt.want)
			}
			wantEqual(t, "the task after "+tt.kind, submitAndWait(t, tasks, "echo", "").Status, Succeeded)
			synctest.Wait()
			_, line, failed := strings.Cut(lines.String(), "level=ERROR")
			if failed != (tt.log != "") || failed && !strings.Contains(line, task.ID) || !strings.Contains(line, tt.log) {
				t.Errorf("%s: the log is %s, want one error with the id %s and %s", tt.kind, brief(lines.String()), task.ID, tt.log)
			}
		})
	}
}

func TestQueueIsInOrderAndBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, err := NewTasks(Config{Kinds: testKinds}).Submit("echo", nil)
		wantEqual(t, "before Start", err, ErrNotAccepting)
		tasks := startTasks(t, Config{Workers: 3, Queue: 4}, "")
		for i := range 7 {
			submit(t, tasks, "second", strconv.Itoa(i))
			synctest.Wait()
		}
		_, err = tasks.Submit("second", nil)
		wantEqual(t, "three run, four of four wait", err, ErrQueueFull)
		tasks.Cancel(tasks.List(Queued, 1)[0].ID)
		submit(t, tasks, "second", "7") // in the place of the canceled one
		for _, want := range []string{"2 1 0 run, 7 5 4 3 wait", "5 4 3 run, 7 wait", "7 run,  wait", " run,  wait"} {
			wantEqual(t, "tasks", inputsOf(tasks.List(Running, 100))+" run, "+inputsOf(tasks.List(Queued, 100))+" wait", want)
			time.Sleep(time.Second)
			synctest.Wait()
		}
	})
}

func TestConfigZeroMeansTheDefault(t *testing.T) {
	c := NewTasks(Config{}).config
	if c.Workers != max(1, runtime.GOMAXPROCS(0)-1) || c.Queue != 1000 || c.Keep != 1000 || c.Log != slog.Default() {
		t.Errorf("got %d workers, a queue of %d, %d kept, the log %v", c.Workers, c.Queue, c.Keep, c.Log)
	}
	for _, c := range []Config{{Workers: -1}, {Queue: -1}, {Keep: -1}} {
		mustPanic(t, func() { NewTasks(c) })
	}
}

func TestListIsNewestFirstAndIDsTellTheirStory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 2, Keep: 4}, "")
		long := submit(t, tasks, "second", `"long"`).ID
		synctest.Wait()
		for i := range 102 { // all but the last four of them are forgotten
			submitAndWait(t, tasks, []string{"echo", "fail"}[i%2], strconv.Itoa(i))
		}
		for want, got := range map[string][]Task{
			`101 100 99 98 "long"`: tasks.List("", 100), "101 100": tasks.List("", 2),
			"100 98": tasks.List(Succeeded, 100), "101": tasks.List(Failed, 1), "": tasks.List(Queued, 100),
		} {
			wantEqual(t, "List", inputsOf(got), want)
		}
		if len(tasks.jobs) != 5 || len(tasks.created) > 10 {
			t.Errorf("%d tasks and %d ids are held, want 5 and at most 10", len(tasks.jobs), len(tasks.created))
		}
		counts := map[Status]int{Queued: 0, Running: 1, Succeeded: 51, Failed: 51}
		wantEqual(t, "Counts, the forgotten ones included", tasks.Counts(), counts)

		run := strings.TrimSuffix(long, "-1")
		for want, ids := range map[error][]string{
			nil:     {run + "-100", run + "-103"},
			ErrGone: {run + "-2", run + "-99", "aaaaaaaa-999999999999999999"}, // the last one of another run
			ErrNotFound: {run + "-104", run + "-0", run + "-04", run + "-99999999999999999999",
				"aaaaaaaa-1x", "AAAAAAAA-1", ""},
		} {
			for _, id := range ids {
				_, got := tasks.Get(id)
				_, waited := tasks.Wait(t.Context(), id)
				_, canceled := tasks.Cancel(id)
				wantEqual(t, "Get, Wait, Cancel of "+id, []error{got, waited, canceled}, []error{want, want, cmp.Or(want, ErrFinished)})
			}
		}
	})
}

// TestWhatIsCutOffIsCanceled: at once, whether it waits or runs, and whatever its Run goes on to do for another minute.
func TestWhatIsCutOffIsCanceled(t *testing.T) {
	for _, tt := range []struct {
		by, again error // again: what the next call says
		warned    int   // in the log
		call      func(tasks *Tasks, id string) error
	}{
		{ErrCanceled, nil, 0, func(tasks *Tasks, id string) error { _, err := tasks.Cancel(id); return err }},
		{ErrStopped, context.DeadlineExceeded, 1, func(tasks *Tasks, _ string) error { return stopWithin(tasks, 40*time.Second) }},
	} {
		bubble(t, func(t *testing.T) {
			var cause error
			stubborn := func(ctx context.Context, _ json.RawMessage, progress func(float64)) (any, error) {
				<-ctx.Done()
				cause = context.Cause(ctx)
				time.Sleep(time.Minute)
				progress(0.9)
				return "late", nil
			}
			log, lines := newLog()
			tasks := startTasks(t, Config{Kinds: map[string]Kind{"stubborn": {Run: stubborn}}, Log: log}, "")
			running, queued := submit(t, tasks, "stubborn", "").ID, submit(t, tasks, "stubborn", "").ID
			synctest.Wait()
			calls := []error{tt.call(tasks, running), tt.call(tasks, queued), tt.call(tasks, queued)}
			if want := []error{nil, tt.again, nil}; !slices.EqualFunc(calls, want, errors.Is) {
				t.Errorf("%v: the calls return %v, want %v", tt.by, calls, want)
			}
			for range 2 { // now, and when it has returned
				synctest.Wait()
				wantEqual(t, "the context's cause", cause, tt.by)
				for _, id := range []string{running, queued} {
					got := wait(t, tasks, id)
					got.Attempt = 0 // or 1, if it ran
					wantEqual(t, "what is cut off", stateOf(got), "canceled 0 0 "+string(errorText(tt.by)))
					wantEqual(t, "without an end", got.FinishedAt.IsZero(), false)
				}
				time.Sleep(time.Hour)
			}
			wantEqual(t, "Counts", tasks.Counts(), map[Status]int{Canceled: 2, Queued: 0, Running: 0})
			wantCount(t, lines.String(), `level=WARN msg="tasks were canceled by the stop" ids="[`+running+" "+queued, tt.warned)
		})
	}
}

// TestStopWaitsForTheRunning: and for the queued, unless a journal keeps them for the next start.
func TestStopWaitsForTheRunning(t *testing.T) {
	for _, tt := range []struct {
		journal string
		queued  Status // what becomes of it
		cancel  error  // and what Cancel says of that
		left    int    // lines of the log that name it
	}{{"", Succeeded, ErrFinished, 0}, {journalOf(t), Queued, ErrStopped, 1}} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Log: log}, tt.journal)
			running, queued := submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
			submit(t, tasks, "second", "")
			synctest.Wait()
			stopped := make(chan error, 1)
			go func() { stopped <- tasks.Stop(t.Context()) }()
			synctest.Wait()
			_, err := tasks.Submit("second", nil)
			wantEqual(t, "a submission while it waits", err, ErrNotAccepting)
			wantEqual(t, "ready while it waits", tasks.Ready(), false)
			wantEqual(t, "Stop", errors.Join(<-stopped, tasks.Stop(t.Context())), nil)
			wantCount(t, lines.String(), fmt.Sprintf(`running=1 queued=2 "queue stays"=%t`, tt.journal != ""), 1)
			wantCount(t, lines.String(), `left in the journal for the next start" ids="[`+queued, tt.left)
			wantCount(t, lines.String(), "level=ERROR", 0)
			statuses := []Status{wait(t, tasks, running).Status, wait(t, tasks, queued).Status}
			wantEqual(t, "the running one and the queued one", statuses, []Status{Succeeded, tt.queued})
			_, err = tasks.Cancel(queued)
			wantEqual(t, "Cancel afterwards", err, tt.cancel)
			if tt.journal != "" && tasks.journal.Close() == nil {
				t.Error("the journal was still open")
			}
		})
	}
}

// The journal.

// journalOf returns a path for a journal, with what is in it.
func journalOf(t testing.TB, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tasks.jsonl")
	if lines != nil {
		fatalIf(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644))
	}
	return path
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	fatalIf(t, err)
	return string(data)
}

// afterCrash returns a copy of the journal. A program that is killed leaves no other: what it does later is not in it.
func afterCrash(t testing.TB, path string) string { return journalOf(t, read(t, path)) }

const (
	lineQueued    = `{"id":"aaaaaaaa-1","kind":"echo","status":"queued","attempt":0,"progress":0,"input":1,"created_at":"2026-01-01T00:00:00Z"}`
	lineSucceeded = `{"id":"aaaaaaaa-1","kind":"echo","status":"succeeded","attempt":1,"progress":1,"input":1,"result":1,"created_at":"2026-01-01T00:00:00Z"}`
)

func TestJournalKeepsWhatWasAcknowledged(t *testing.T) {
	bubble(t, func(t *testing.T) {
		path := journalOf(t)
		tasks := startTasks(t, Config{}, path)
		runs := map[string]bool{submitAndWait(t, tasks, "echo", strconv.Quote(strings.Repeat("x", 100_000))).ID[:8]: true}
		submitAndWait(t, tasks, "fail", nestedTo(9_000))
		for n := range 10 { // all at the same time: their order is that of their numbers
			submit(t, tasks, "second", strconv.Itoa(n))
		}
		tasks.Cancel(tasks.List("", 1)[0].ID) // 9 has finished before the others
		for n := range 4 {
			if n%2 == 0 {
				path = afterCrash(t, path)
			} else {
				wantEqual(t, "Stop", stopWithin(tasks, 1500*time.Millisecond), nil)
			}
			before := tasks.List("", 100)
			time.Sleep(time.Nanosecond)
			tasks = startTasks(t, Config{}, path)
			after := tasks.List("", 100)
			wantEqual(t, "the tasks after a start", inputsOf(after), inputsOf(before))
			for i, was := range before {
				if was.Status.Finished() && i < len(after) {
					wantEqual(t, "a finished task after a start", after[i], was)
				}
			}
			runs[submit(t, tasks, "echo", strconv.Itoa(100+n)).ID[:8]] = true
		}
		wantEqual(t, "the first halves of the ids that five runs give", len(runs), 5)
		time.Sleep(time.Hour)
		path = afterCrash(t, path)
		tasks = startTasks(t, Config{Keep: 13}, path) // not the three that finished first
		wantEqual(t, "what is kept", inputsOf(tasks.List(Succeeded, 100)), "103 102 101 100 8 7 6 5 4 3 2 1 0")
		wantEqual(t, "Counts", tasks.Counts()[Succeeded], 13)
		wantCount(t, read(t, path), "\n", 13)
	})
}

func TestJournalCountsTheAttempts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		path, said := journalOf(t), ""
		for n, want := range []string{
			"running 1 0.5, running 1 0.5",
			"queued 1 0, running 2 0.5",
			"queued 1 0, running 3 0.5", // then an orderly stop; a crash after each of the others
			"queued 0 0, running 1 0.5",
			"queued 0 0, running 2 0.5",
			"queued 0 0, running 3 0.5",
			"running 1 0.5, failed 3 0 " + string(errorText(ErrCrashed)),
		} {
			log, lines := newLog()
			tasks := startTasks(t, Config{Workers: max(1, 2-n), Log: log}, path) // both run at first
			for range 2 - len(tasks.List("", 2)) {
				submit(t, tasks, "second", "")
			}
			state := func() string {
				synctest.Wait()
				list := tasks.List("", 2) // the newest first
				wantEqual(t, "without a start", list[0].StartedAt.IsZero(), list[0].Status == Queued)
				return strings.TrimSpace(stateOf(list[0])) + ", " + strings.TrimSpace(stateOf(list[1]))
			}
			wantEqual(t, fmt.Sprint("start ", n), state(), want)
			if n == 2 {
				wantEqual(t, "Stop", stopWithin(tasks, 0), nil)
				wantEqual(t, "after an orderly stop", state(), "queued 0 0, queued 0 0")
			}
			path, said = afterCrash(t, path), lines.String()
		}
		wantCount(t, said, `level=ERROR msg="task failed"`, 1)
		wantCount(t, said, "cause="+strconv.Quote(ErrCrashed.Error()), 1)
	})
}

func TestJournalIsReadOrStaysUntouched(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(lineQueued, old, new, 1) }
	gone := string(errorText(ErrKindGone))
	const done, torn, first, second = "succeeded 1 1 1", "level=WARN msg=\"dropped half a line", ":1: ", ":2: "
	for name, tt := range map[string]struct {
		lines     []string
		want, log string // how the task ends, or the line in the error
	}{
		"the start of a line":               {[]string{lineQueued, "{"}, done, torn},
		"half a line in the id":             {[]string{lineQueued, `{"id":"aaaaa`}, done, torn},
		"a line but for the line feed":      {[]string{lineQueued, lineSucceeded}, done, `tasks=1 "run again"=0`},
		"an older version's":                {[]string{replace(`"attempt":0`, `"crashes":1`), ""}, done, `tasks=1 "run again"=1`},
		"a finished one":                    {[]string{lineSucceeded, ""}, done, `tasks=1 "run again"=0`},
		"its Check would refuse it now":     {[]string{replace("echo", "refuse"), ""}, done, `"run again"=1`},
		"its kind is gone":                  {[]string{replace("echo", "nope"), ""}, "failed 1 0 " + gone, `"run again"=1`},
		"no JSON":                           {[]string{lineQueued, "{", ""}, second, ""},
		"an empty line":                     {[]string{lineQueued, "", lineSucceeded, ""}, second, ""},
		"another type":                      {[]string{replace(`"echo"`, "5"), ""}, first, ""},
		"no id":                             {[]string{replace("aaaaaaaa-1", ""), ""}, first, ""},
		"an unknown state":                  {[]string{lineQueued, replace("queued", "paused"), ""}, second, ""},
		"a damaged name":                    {[]string{replace("input", "inpuu"), ""}, first, ""},
		"two values in a line":              {[]string{lineQueued + lineQueued, ""}, first, ""},
		"a task goes on after its end":      {[]string{lineSucceeded, lineQueued, ""}, second, ""},
		"NULs at the end":                   {[]string{lineQueued, "\x00\x00"}, second, ""},
		"named by mistake: notes":           {[]string{"my notes"}, first, ""},
		"named by mistake: JSON":            {[]string{`{"1":"Boostcamp"}`}, first, ""},
		"named by mistake: JSON with an id": {[]string{`{"id":"customer-1","name":"x"}`}, first, ""},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			path := journalOf(t, tt.lines...)
			tasks, before := NewTasks(Config{Kinds: testKinds, Log: log, Error: errorText}), read(t, path)
			if err := tasks.Start(path); err != nil {
				if !strings.HasPrefix(err.Error(), path+tt.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: got %v, want %s", name, err, tt.want)
				}
				wantEqual(t, name+": the file", read(t, path), before)
				return
			}
			defer stopWithin(tasks, 0)
			wantEqual(t, name, stateOf(wait(t, tasks, "aaaaaaaa-1")), tt.want)
			wantCount(t, lines.String(), tt.log, 1)
		})
	}
}

func TestJournalThatCannotBeUsedStopsTheStart(t *testing.T) {
	dir, blocked := t.TempDir(), journalOf(t, lineQueued, "")
	paths := map[string]string{
		filepath.Join(dir, "nope", "tasks.jsonl"): "open the journal: ",
		dir:     "is not a regular file",
		blocked: "compact the journal: ", // there is no room for the new one
	}
	fatalIf(t, os.MkdirAll(blocked+".new/full", 0o700))
	pipe := filepath.Join(dir, "pipe")
	if err := exec.Command("mkfifo", pipe).Run(); err == nil {
		paths[pipe] = "is not a regular file"
		f, err := os.OpenFile(pipe, os.O_RDWR, 0) // who reads it all the same is not to wait for ever
		fatalIf(t, err)
		defer f.Close()
		fmt.Fprintln(f, "something")
	}
	for path, want := range paths {
		if err := NewTasks(Config{Log: discard}).Start(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
	wantEqual(t, "the journal", read(t, blocked), lineQueued+"\n")
}

// TestJournalIsAFileOfItsOwn: others read what clients sent neither in it nor through what lies at the new file's name,
// left over from a start that was killed, or put there.
func TestJournalIsAFileOfItsOwn(t *testing.T) {
	path, link, victim := journalOf(t), journalOf(t), journalOf(t, "mine") // path is not there yet, as on a new volume
	if err := errors.Join(os.Symlink(path, link), os.Symlink(victim, path+".new")); err != nil {
		t.Skip(err)
	}
	bubble(t, func(t *testing.T) { submitAndWait(t, startTasks(t, Config{}, link), "echo", "") })
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Fatalf("the journal is %v, %v, want a file with mode 0600", info, err)
	}
	wantCount(t, read(t, path), "\n", 3)
	wantEqual(t, "the other file", read(t, victim), "mine")
	to, _ := os.Readlink(link)
	wantEqual(t, "the link", to, path)
	if _, err := os.Lstat(path + ".new"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new file is still there: %v", err)
	}
}

// TestJournalThatFailsEndsTheAcceptance: whoever finds out first. A disk is full after half a line while tasks run.
func TestJournalThatFailsEndsTheAcceptance(t *testing.T) {
	for first, tt := range map[string]struct {
		workers, ran int // of three tasks
		find         func(tasks *Tasks, id string)
	}{
		"Submit":                   {2, 2, func(tasks *Tasks, _ string) { tasks.Submit("echo", nil) }},
		"Submit, and workers wait": {5, 3, func(tasks *Tasks, _ string) { tasks.Submit("echo", nil) }},
		"Cancel":                   {2, 2, func(tasks *Tasks, id string) { tasks.Cancel(id) }},
		"the end of a task":        {2, 2, func(*Tasks, string) { time.Sleep(time.Minute) }},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			path := journalOf(t)
			tasks := startTasks(t, Config{Workers: tt.workers, Log: log}, path)
			ids := []string{submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID}
			synctest.Wait()
			fmt.Fprint(tasks.journal, `{"id":"half`)
			tasks.journal.Close()
			full := read(t, path)
			tt.find(tasks, ids[0])
			_, submitted := tasks.Submit("echo", nil)
			_, canceled := tasks.Cancel(ids[2])
			wantEqual(t, first+" first: Cancel", canceled, submitted)
			if !errors.Is(submitted, ErrNotAccepting) || !errors.Is(submitted, os.ErrClosed) || tasks.Ready() {
				t.Errorf("%s first: got %v, ready %v, want %v, and why", first, submitted, tasks.Ready(), ErrNotAccepting)
			}
			if synctest.Wait(); tt.workers > tt.ran { // the workers that wait end at once
				wantCount(t, lines.String(), "no task is accepted or started any more", 1)
			}
			time.Sleep(time.Minute)
			counts := map[Status]int{Queued: 3 - tt.ran, Running: 0, Succeeded: tt.ran} // what ran is shown, what waits is left
			wantEqual(t, first+" first: Counts", tasks.Counts(), counts)
			wantCount(t, lines.String(), "no task is accepted or started any more", 1)
			wantCount(t, lines.String(), "will run it again", tt.ran)
			if err := stopWithin(tasks, 0); !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s first: Stop says %v, want %v", first, err, os.ErrClosed)
			}
			wantEqual(t, first+" first: the file", read(t, path), full)
			tasks = startTasks(t, Config{}, path)
			for i, attempt := range []int{2, 2, tt.ran - 1} {
				wantEqual(t, "after the next start", stateOf(wait(t, tasks, ids[i])), fmt.Sprintf("succeeded %d 1 null", attempt))
			}
		})
	}
}

// FuzzJournal: any bytes end in an error with the file untouched, or in a start that loses no whole line and that
// would be the same on the file that it has written.
func FuzzJournal(f *testing.F) {
	f.Add(lineQueued + "\n" + lineSucceeded + "\n")
	f.Add(strings.Replace(lineSucceeded, "-1", "-2", 1) + "\n" + lineQueued + "\n" + `{"id":"aa`)
	f.Add(strings.Replace(lineQueued, `"attempt":0,"progress":0`, `"attempt":-9223372036854775808,"progress":-1e308`, 1) + "\n")
	f.Add(strings.NewReplacer("2026", "9999", `"input":1`, `"input":null`).Replace(lineQueued) + "\n")
	f.Fuzz(func(t *testing.T, data string) {
		path := journalOf(t, data)
		open := func() (string, error) { // what Start does before its workers run the tasks
			tasks := NewTasks(Config{Keep: 1 << 20, Log: discard})
			if err := tasks.openJournal(path); err != nil {
				return "", err
			}
			list, err := json.Marshal(tasks.List("", 1<<20))
			return string(list), errors.Join(err, tasks.journal.Close())
		}
		list, err := open()
		if err != nil {
			wantEqual(t, "the refused file", read(t, path), data)
			return
		}
		for line := range strings.Lines(data[:strings.LastIndexByte(data, '\n')+1]) {
			var task Task
			if err := json.Unmarshal([]byte(line), &task); err != nil || !strings.Contains(list, `{"id":"`+task.ID+`"`) {
				t.Errorf("the line %q is lost: %v, %s", line, err, brief(list))
			}
		}
		again, err := open()
		wantEqual(t, fmt.Sprint("its own journal, ", err), again, list)
	})
}

func BenchmarkTasks(b *testing.B) {
	for _, n := range []int{10, 1_000_000} {
		tasks := NewTasks(Config{Kinds: testKinds, Keep: n, Log: discard})
		tasks.accepting = true // but no worker: what is measured is the map
		var ids []string
		for range n {
			ids = append(ids, submit(b, tasks, "echo", "").ID)
			tasks.Cancel(ids[len(ids)-1])
		}
		b.Run(fmt.Sprintf("get with %d in the map", n), func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				tasks.Get(ids[i*7919%n])
			}
		})
		b.Run(fmt.Sprintf("submit and cancel with %d in the map", n), func(b *testing.B) {
			for b.Loop() {
				tasks.Cancel(submit(b, tasks, "echo", "").ID)
			}
		})
	}
}

// BenchmarkStart reads a journal of a million lines, three a task.
func BenchmarkStart(b *testing.B) {
	var text strings.Builder
	lines := []string{lineQueued, strings.Replace(lineQueued, "queued", "running", 1), lineSucceeded}
	for n := range 1_000_000 {
		fmt.Fprintln(&text, strings.Replace(lines[n%3], "-1", fmt.Sprintf("-%d", n/3+1), 1))
	}
	path := journalOf(b, text.String())
	for b.Loop() {
		f, err := os.Open(path)
		if err := errors.Join(err, NewTasks(Config{Log: discard}).replay(f), f.Close()); err != nil {
			b.Fatal(err)
		}
	}
}

// ---- lifecycle.go

func ExampleLifecycle() {
	say := func(what string) func(context.Context) error {
		return func(context.Context) error { fmt.Println(what); return nil }
	}
	l := &Lifecycle{Log: discard, Grace: time.Second}
	l.Add(Hook{Name: "model", Start: say("load the model"), Stop: say("save the log")})
	l.Add(Hook{Name: "jobs", Start: say("start the jobs"), Drain: say("finish the jobs")})

	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { // a client, and then Ctrl-C
		defer stop()
		resp, err := http.Get("http://" + ln.Addr().String())
		if err == nil {
			fmt.Println("served", resp.StatusCode)
			resp.Body.Close()
		}
	}()
	fmt.Println(l.Run(ctx, ln, &http.Server{Handler: http.NotFoundHandler()}))
	// Output:
	// load the model
	// start the jobs
	// served 404
	// finish the jobs
	// save the log
	// <nil>
}

// A stage is a server that runs in a bubble, on a network in memory, and its client.
type stage struct {
	conns       chan net.Conn
	closed      context.Context
	close, stop context.CancelFunc // of the listener; as a signal does
	client      *http.Client
	ended       chan error // what Run returned
}

func (s *stage) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed.Done():
		return nil, net.ErrClosed
	}
}

func (s *stage) Dial(context.Context, string, string) (net.Conn, error) {
	server, client := net.Pipe()
	select {
	case s.conns <- server:
		return client, nil
	case <-s.closed.Done():
		return nil, errors.New("refused")
	}
}

func (s *stage) Close() error   { s.close(); return nil }
func (s *stage) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func newStage(t *testing.T, l *Lifecycle, srv *http.Server) *stage {
	s := &stage{conns: make(chan net.Conn), ended: make(chan error, 1)}
	s.closed, s.close = context.WithCancel(t.Context())
	s.client = &http.Client{Transport: &http.Transport{DialContext: s.Dial}}
	t.Cleanup(s.client.CloseIdleConnections)
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	go func() { s.ended <- l.Run(ctx, s, srv); close(s.ended) }()
	t.Cleanup(func() { stop(); <-s.ended }) // the bubble's time stands still when the test has ended
	return s
}

// get returns the reply's status line, whether the connection is to be closed, or the error.
func (s *stage) get() string {
	resp, err := s.client.Get("http://server/")
	if err != nil {
		return errors.Unwrap(err).Error()
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if resp.Close {
		return resp.Status + ", close"
	}
	return resp.Status
}

// TestLifecycleRunsItsStepsInOrder: each step notes that it is called, if the server is ready, and how much time it has.
func TestLifecycleRunsItsStepsInOrder(t *testing.T) {
	type step = func(context.Context) error
	fail := func(context.Context) error { return io.EOF }
	giveUp := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	succeed := func(ctx context.Context) error { <-ctx.Done(); return nil }
	takes := func(d time.Duration) step { return func(context.Context) error { time.Sleep(d); return nil } }
	const served = "start a, start b, start c, request (ready), drain b in 10s, "
	for _, tt := range []struct {
		name  string
		does  map[string]step // what a step does, if not nothing
		diary string
		err   string
	}{
		{"steps share their time", map[string]step{"drain b": takes(4 * time.Second), "stop b": takes(time.Second)},
			served + "drain a in 6s, stop b in 5s, stop a in 4s", "<nil>"},
		{"all drains and stops fail", map[string]step{"drain b": fail, "drain a": fail, "stop b": fail, "stop a": fail},
			served + "drain a in 10s, stop b in 5s, stop a in 5s", "drain b: EOF\ndrain a: EOF\nstop b: EOF\nstop a: EOF"},
		{"a start fails, and a stop", map[string]step{"start b": fail, "stop a": fail},
			"start a, start b, stop a in 5s", "start b: EOF\nstop a: EOF"},
		{"a signal during a start that gives up", map[string]step{"start b": giveUp},
			"start a, start b, stop a in 5s", "<nil>"},
		{"a signal during a start that succeeds", map[string]step{"start b": succeed},
			"start a, start b, stop b in 5s, stop a in 5s", "<nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l, diary := &Lifecycle{Log: discard, Grace: 20 * time.Second}, []string{}
				note := func(name string) step {
					return func(ctx context.Context) error {
						entry := name
						if l.Ready() {
							entry += " (ready)"
						}
						if end, ok := ctx.Deadline(); ok {
							entry += fmt.Sprintf(" in %v", time.Until(end))
						}
						diary = append(diary, entry)
						if ctx.Err() != nil || tt.does[name] == nil {
							return ctx.Err()
						}
						return tt.does[name](ctx)
					}
				}
				l.Add(Hook{"a", note("start a"), note("drain a"), note("stop a")})
				l.Add(Hook{"b", note("start b"), note("drain b"), note("stop b")})
				l.Add(Hook{Name: "c", Start: note("start c")})
				s := newStage(t, l, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					note("request")(t.Context())
				})})
				go s.get()
				synctest.Wait()
				s.stop()
				if err := fmt.Sprint(<-s.ended); err != tt.err || s.closed.Err() == nil {
					t.Errorf("the error is %q, want %q; or the listener is still open", err, tt.err)
				}
				if got := strings.Join(diary, ", "); got != tt.diary {
					t.Errorf("\ngot  %s\nwant %s", got, tt.diary)
				}
			})
		})
	}
}

// TestStopLastsAsLongAsItsClientsNeed, and until then the server answers, and asks its clients to leave.
func TestStopLastsAsLongAsItsClientsNeed(t *testing.T) {
	const s, hour = time.Second, time.Hour
	for _, tt := range []struct {
		name                  string
		linger, drain, signal time.Duration // the signal comes so long after the request
		request, lasts        time.Duration // the request takes so long, and the stop, from the signal on
		reply                 string
		err                   error
	}{
		{"nobody came lately", 2 * s, 0, 2 * s, 0, 0, "200 OK", nil},
		{"a handler has panicked", 2 * s, 0, 2 * s, -1, 0, "EOF", nil},
		{"somebody came just now", 2 * s, 0, 1 * s, 0, 2 * s, "200 OK", nil},
		{"a linger of more than half of what the drain left", hour, 4 * s, 1 * s, 0, 12 * s, "200 OK", nil},
		{"a request in flight that ends within the linger", 2 * s, 0, 0, 1 * s, 2 * s, "200 OK", nil},
		{"a request in flight that ends within the grace", 2 * s, 0, 0, 15 * s, 15 * s, "200 OK, close", nil},
		{"a request in flight that takes longer", 2 * s, 0, 0, hour, 20 * s, "EOF", context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				l := &Lifecycle{Log: discard, Grace: 20 * time.Second, Linger: tt.linger}
				l.Add(Hook{Drain: func(context.Context) error { time.Sleep(tt.drain); return nil }})
				s := newStage(t, l, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if tt.request < 0 {
						panic(http.ErrAbortHandler)
					}
					select {
					case <-time.After(tt.request):
					case <-r.Context().Done():
					}
				})})
				reply := make(chan string, 1)
				go func() { reply <- s.get() }()
				synctest.Wait()
				time.Sleep(tt.signal)
				begin := time.Now()
				s.stop()
				for tt.request == 0 && time.Since(begin) < tt.lasts { // first on the kept-alive connection, then on new ones
					synctest.Wait()
					if got := s.get(); got != "200 OK, close" {
						t.Errorf("%v after the signal a request got %s, want 200 OK, close", time.Since(begin), got)
					}
					time.Sleep(500 * time.Millisecond)
				}
				if err := <-s.ended; !errors.Is(err, tt.err) {
					t.Errorf("the error is %v, want %v", err, tt.err)
				}
				// Shutdown looks every half a second whether the last request has ended.
				if took := time.Since(begin); took < tt.lasts || took > tt.lasts+time.Second {
					t.Errorf("it took %v, want %v", took, tt.lasts)
				}
				if got := <-reply; got != tt.reply {
					t.Errorf("the request got %s, want %s", got, tt.reply)
				}
			})
		})
	}
}

// TestLifecycleEndsWhenItsListenerBreaks: in order, and with an error. Everything else has its zero value.
func TestLifecycleEndsWhenItsListenerBreaks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logBuffer
		log.SetOutput(&lines) // what slog.Default writes to
		defer log.SetOutput(os.Stderr)
		l, stopped := &Lifecycle{}, false
		l.Add(Hook{Stop: func(context.Context) error { stopped = true; return nil }})
		s := newStage(t, l, &http.Server{})
		if got := s.get(); got != "404 Not Found" {
			t.Errorf("got %s, want the reply of http.DefaultServeMux", got)
		}
		s.Close()
		if err := <-s.ended; !errors.Is(err, net.ErrClosed) || !stopped {
			t.Errorf("got %v, want %v; the hook was stopped: %v", err, net.ErrClosed, stopped)
		}
		if !strings.Contains(lines.String(), `cause="use of closed`) || strings.Contains(lines.String(), "INFO stopped") {
			t.Errorf("the log is %q", lines.String())
		}
	})
}

// ---- main.go

func init() { program = main }

// newTestApp returns the app and its handler, with the Start hooks run as Lifecycle.Run does it. It has one worker and
// a queue of ten. At the end of the test the Stop hooks run.
func newTestApp(t testing.TB, log *slog.Logger) (*app, http.Handler) {
	t.Helper()
	a := newApp(config{workers: 1, queue: 10, keep: 10}, log)
	started, err := a.lifecycle.start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.lifecycle.ready.Store(true)
	t.Cleanup(func() {
		a.stop()
		stopWithin(a.tasks, 0) // without time for a drain
		for _, h := range slices.Backward(started) {
			if err := call(context.Background(), "stop", h.Name, h.Stop); err != nil {
				t.Error(err)
			}
		}
	})
	return a, a.handler()
}

var roomy = config{workers: 1, queue: 100, keep: 100, grace: 20 * time.Second, linger: 2 * time.Second}

// appStage is the app's own server in a bubble.
func appStage(t *testing.T, c config, log *slog.Logger) (*app, *stage) {
	a := newApp(c, log)
	s := newStage(t, a.lifecycle, a.server())
	synctest.Wait()
	return a, s
}

// remote is a handler that asks a server, so that do and post reach it too. No reply is a 502 that says why.
func remote(host string, transport http.RoundTripper) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: host}) },
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
}

// taskOf returns the task in a reply. A reply of another status ends the test, and is shown.
func taskOf(t testing.TB, status int, w *httptest.ResponseRecorder) (task Task) {
	t.Helper()
	if w.Code != status {
		t.Fatalf("got %d %s, want %d and a task", w.Code, brief(w.Body.String()), status)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &task); err != nil || task.ID == "" {
		t.Fatalf("%d with a body that is no task: %s: %v", w.Code, brief(w.Body.String()), err)
	}
	return task
}

// post submits a task to a handler.
func post(h http.Handler, body string, header ...string) *httptest.ResponseRecorder {
	return do(h, "POST", "/tasks", body, append(header, "Content-Type", "application/json")...)
}

func TestAppAnswersAsItsTableSays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		for _, tt := range []struct {
			request string // method, path, body
			status  int
			want    string // the body; of a redirect the Location, of a task the input, of a problem how the detail begins
		}{
			{`GET /`, 307, `/docs`},
			{`GET /users/`, 200, `[{"username":"Rick"},{"username":"Morty"}]`},
			{`GET /users/%3Cb%3E%26%ED%95%9C`, 200, `{"username":"<b>&한"}`},
			{`GET /orders/`, 200, `[{"order":"Taco"},{"order":"Burritto"}]`},
			{`GET /orders/me`, 200, `{"my_order":"taco"}`},
			{`GET /v1/1`, 200, `"Boostcamp"`},
			{`GET /v1/2`, 200, `"AI"`},
			{`GET /v1/5`, 500, ``},
			{`GET /v1/x`, 422, `path.item_id must be an integer of at most 64 bits`},
			{`GET /v2/3`, 200, `"Tech"`},
			{`GET /v2/+5`, 404, `아이템을 찾을 수 없습니다 [id: 5]`},
			{`GET /v2/x`, 422, `path.item_id must be an integer of at most 64 bits`},
			{`GET /tasks`, 200, `[]`},
			{`GET /tasks?status=nope`, 422, `query.status must be one of [queued running succeeded failed canceled]`},
			{`GET /tasks?status=%zz`, 400, `the query is malformed`},
			{`GET /tasks/nope`, 404, `no such task`},
			{`GET /tasks/aaaaaaaa-1`, 410, `the task is no longer known`},
			{`DELETE /tasks/nope`, 404, `no such task`},
			{`PUT /tasks`, 405, `this path allows GET, HEAD, POST`},
			{`POST /tasks {"kind":"sleep"}`, 202, `{"wait_time":3}`},
			{`POST /tasks {"kind":"nope"}`, 422, `body.kind must be a kind of task: `},
			{`POST /tasks {"kind":"sleep","priority":1}`, 422, `body.priority is not a field here`},
			{`GET /tasks?status=failed`, 200, `[]`},
			{`GET /healthz`, 200, `{"status":"ok"}`},
			{`GET /readyz`, 200, `{"status":"ok"}`},
			{`GET /nope`, 404, `there is nothing at this path`},
		} {
			part := append(strings.SplitN(tt.request, " ", 3), "")
			w := do(h, part[0], part[1], part[2], "Content-Type", "application/json", "Sec-Fetch-Site", "same-origin")
			got := strings.TrimSuffix(w.Body.String(), "\n")
			switch {
			case w.Code != tt.status:
			case w.Code == 202:
				task := taskOf(t, 202, w)
				got = string(task.Input)
				if location := w.Header().Get("Location"); location != "/tasks/"+task.ID {
					t.Errorf("%s: the Location of task %s is %q", tt.request, task.ID, location)
				}
			case w.Code >= 400:
				got = problemOf(t, w).Detail
				if tt.want != "" && strings.HasPrefix(got, tt.want) {
					got = tt.want
				}
			case w.Code >= 300:
				got = w.Header().Get("Location")
			}
			if w.Code != tt.status || got != tt.want {
				t.Errorf("%s: got %d %s, want %d %s", tt.request, w.Code, brief(got), tt.status, tt.want)
			}
			changes := w.Code >= 400 || strings.HasPrefix(part[1], "/tasks") || strings.HasSuffix(part[1], "z")
			if got := w.Header().Get("Cache-Control"); (got == "no-store") != changes {
				t.Errorf("%s: Cache-Control is %q", tt.request, got)
			}
		}
		if w := do(h, "POST", "/tasks", "", "Sec-Fetch-Site", "cross-site"); problemOf(t, w).Status != 403 {
			t.Errorf("from a page of another origin: got %d %s, want 403", w.Code, brief(w.Body.String()))
		}
		for _, r := range a.routes().Routes() {
			if r.Summary == "" {
				t.Errorf("%s %s has no summary", r.Method, r.Path)
			}
		}
	})
}

// TestTasksOverHTTP is the lecture's comparison: answered at once and polled, or waited for.
func TestTasksOverHTTP(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, h := newTestApp(t, discard)
		begin := time.Now()
		check := func(want string, w *httptest.ResponseRecorder) Task {
			t.Helper()
			task, after := taskOf(t, w.Code, w), time.Since(begin).Round(time.Millisecond)
			got := fmt.Sprintf("%d %s after %v, Retry-After %q, applied %q", w.Code, task.Status, after,
				w.Header().Get("Retry-After"), w.Header().Get("Preference-Applied"))
			if got != want {
				t.Errorf("\ngot  %s\nwant %s", got, want)
			}
			return task
		}
		task := check(`202 queued after 0s, Retry-After "1", applied ""`, post(h, `{"kind":"sleep"}`))
		url := "/tasks/" + task.ID
		time.Sleep(1500 * time.Millisecond)
		task = check(`200 running after 1.5s, Retry-After "1", applied ""`, do(h, "GET", url, ""))
		if task.Progress < 0.4 || task.Progress > 0.6 {
			t.Errorf("halfway the progress is %v", task.Progress)
		}
		check(`200 succeeded after 3s, Retry-After "", applied "wait=5"`, do(h, "GET", url, "", "Prefer", "wait=5"))
		check(`200 succeeded after 6s, Retry-After "", applied "wait=5"`, post(h, `{"kind":"sleep"}`, "Prefer", "wait=5"))
		task = check(`202 running after 7s, Retry-After "1", applied "wait=1"`, post(h, `{"kind":"sleep"}`, "Prefer", "wait=1"))
		task = check(`200 canceled after 7s, Retry-After "", applied ""`, do(h, "DELETE", "/tasks/"+task.ID, ""))
		const want = `{"type":"about:blank","title":"Conflict","status":409,"detail":"the task was canceled"}`
		if string(task.Error) != want {
			t.Errorf("the error is %s, want %s", task.Error, want)
		}
	})
}

func TestQueueThatIsFullSaysWhenToComeBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, h := newTestApp(t, discard)
		for range 11 { // one runs, and ten wait
			taskOf(t, http.StatusAccepted, post(h, `{"kind":"sleep"}`))
			synctest.Wait()
		}
		w := post(h, `{"kind":"sleep"}`)
		if p := problemOf(t, w); p.Status != 503 || p.Detail != "the queue is full" || w.Header().Get("Retry-After") != "1" {
			t.Errorf("got %+v, Retry-After %q; want a 503 that says why, and 1", p, w.Header().Get("Retry-After"))
		}
	})
}

func TestReadyzSaysWhenToComeBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		check := func(path string, status int, retryAfter string) {
			t.Helper()
			if w := do(h, "GET", path, ""); w.Code != status || w.Header().Get("Retry-After") != retryAfter {
				t.Errorf("%s: got %d %v %s, want %d", path, w.Code, w.Header(), brief(w.Body.String()), status)
			}
		}
		a.lifecycle.ready.Store(false)
		check("/readyz", 503, "1")
		a.lifecycle.ready.Store(true)
		a.tasks.Stop(t.Context())
		check("/readyz", 503, "1")
		check("/healthz", 200, "")
	})
}

func TestPreferWait(t *testing.T) {
	for in, want := range map[string]int{
		"wait=5": 5, " WAIT = 5 ": 5, "wait=5;x=y": 5, "respond-async, wait=5": 5, "wait=5, wait=7": 5, "wait=x, wait=5": 5,
		"wait=0": 0, "wait=30": 30, "wait=31": 30, "wait=99999999999999999999999": 30,
		`x="a, wait=9", wait=5`: 5, `x="\", wait=9", wait=5`: 5,
		"": -1, "wait=": -1, "wait=x": -1, "wait=-5": -1, "wait=5s": -1, `wait="5"`: -1, "await=5": -1, "wait=5 6": -1,
	} {
		for _, lines := range [][]string{{in}, {"respond-async", in}} {
			got, ok := preferWait(http.Header{"Prefer": lines})
			if ok != (want >= 0) || got != max(want, 0) {
				t.Errorf("Prefer: %q: got %d, %v; want %d", lines, got, ok, want)
			}
		}
	}
}

// TestTaskErrorsAreProblems: the request's error, and the task's that ends with it. The cause is for the log.
func TestTaskErrorsAreProblems(t *testing.T) {
	a, secret := &app{}, errors.New("secret")
	for want, err := range map[string]error{
		`404 "no such task" ""`:                                               ErrNotFound,
		`410 "the task is no longer known" ""`:                                ErrGone,
		`409 "the task has already finished" ""`:                              ErrFinished,
		`409 "the task was canceled" ""`:                                      ErrCanceled,
		`503 "the queue is full" "1"`:                                         ErrQueueFull,
		`503 "no tasks are accepted now" "1"`:                                 fmt.Errorf("%w: %w", ErrNotAccepting, secret),
		`503 "the server stopped before the task had finished" "1"`:           ErrStopped,
		`500 "the server crashed three times in a row while the task ran" ""`: ErrCrashed,
		`500 "the server no longer has this kind of task" ""`:                 fmt.Errorf("%w: %w", ErrKindGone, secret),
		`404 "아이템 <5>" ""`:                                                    Errorf(404, "아이템 <5>").Because(secret),
		`500 "" ""`:                                                           secret,
	} {
		got, header := a.taskError(err), http.Header{}
		if he, ok := errors.AsType[*HTTPError](got); ok {
			header = he.Header
		}
		var p Problem
		json.Unmarshal(a.taskProblem(err), &p)
		if got := fmt.Sprintf("%d %q %q", p.Status, p.Detail, header.Get("Retry-After")); got != want {
			t.Errorf("%v: got %s, want %s", err, got, want)
		}
		if errors.Is(err, secret) != errors.Is(got, secret) {
			t.Errorf("%v: its cause is lost to the log: %v", err, got)
		}
	}
	if got := a.taskError(ErrUnknownKind).Error(); !strings.Contains(got, " or sleep") {
		t.Errorf("an unknown kind: %s, which does not list the kinds in order", got)
	}
}

// TestKinds: what is refused when it is submitted fails the task too, if an older version's journal has it.
func TestKinds(t *testing.T) {
	const badTime, badN = "422 body.input.wait_time must be between 1 and 10", "422 body.input.n must be between 2 and 50000000"
	for _, tt := range []struct{ kind, input, want string }{
		{"sleep", ``, `{"wait_time":3} "task done after 3"`},
		{"sleep", `{"wait_time":1}`, `{"wait_time":1} "task done after 1"`},
		{"sleep", `{"wait_time":10}`, `{"wait_time":10} "task done after 10"`},
		{"sleep", `{"wait_time":0}`, badTime},
		{"sleep", `{"wait_time":11}`, badTime},
		{"sleep", `{"n":3}`, "422 body.input.n is not a field here"},
		{"primes", `{"n":1}`, badN},
		{"primes", `{"n":50000001}`, badN},
		{"primes", `{"n":2}`, `{"n":2} {"primes":1}`},
		{"primes", `{"n":9}`, `{"n":9} {"primes":4}`},
		{"primes", `{"n":121}`, `{"n":121} {"primes":30}`},
		{"primes", `{"n":100000}`, `{"n":100000} {"primes":9592}`},
		{"primes", `{"n":50000000}`, `{"n":50000000} the task was canceled`}, // here the context has ended
	} {
		bubble(t, func(t *testing.T) {
			k, last := (&app{}).kinds()[tt.kind], 0.0
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if strings.Contains(tt.want, "canceled") {
				cancel(ErrCanceled)
			}
			checked, refusal := k.Check(json.RawMessage(tt.input))
			result, err := k.Run(ctx, json.RawMessage(tt.input), func(p float64) { last = p })
			got := fmt.Sprint(string(checked), " ", err)
			if err == nil {
				encoded, _ := json.Marshal(result)
				got = fmt.Sprintf("%s %s", checked, encoded)
			}
			if strings.TrimSpace(got) != tt.want || (refusal != nil) != (checked == nil) {
				t.Errorf("%s %s: got %s, want %s; Check said %v", tt.kind, tt.input, got, tt.want, refusal)
			}
			if last > 1 || len(checked) > 10 && err == nil && last < 0.9 {
				t.Errorf("%s %s: the progress is %v at the end", tt.kind, tt.input, last)
			}
		})
	}
}

// TestProcessorsAreLentOnlyWhileTasksHoldAll: to tasks that compute, and what was set is set again.
func TestProcessorsAreLentOnlyWhileTasksHoldAll(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(3))
	var p processors
	for i, want := range []struct{ n, procs int }{{1, 3}, {1, 3}, {1, 4}, {1, 5}, {-1, 4}, {-1, 3}, {1, 4}, {-1, 3}, {-1, 3}, {-1, 3}} {
		p.add(want.n)
		if got := runtime.GOMAXPROCS(0); got != want.procs {
			t.Errorf("step %d, %d tasks: GOMAXPROCS is %d, want %d", i, p.busy, got, want.procs)
		}
	}
	runtime.GOMAXPROCS(1)
	var during int
	k := (&app{}).kinds()["primes"]
	_, err := k.Run(t.Context(), json.RawMessage(`{"n":2000}`), func(float64) { during = runtime.GOMAXPROCS(0) })
	if after := runtime.GOMAXPROCS(0); err != nil || during != 2 || after != 1 {
		t.Errorf("%d processors while primes are counted, %d after; want 2, 1; %v", during, after, err)
	}
}

// TestRunThatFailsSaysWhy: in the usage, or in one line of the log.
func TestRunThatFailsSaysWhy(t *testing.T) {
	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	const usage = `\nUsage of plainapi:\n(.*\n)*`
	const failed = `(.*\n)*.* level=ERROR .*` // a hook before may have logged something
	const badGrace = "-grace must be positive, and -linger must not be negative" + usage
	for _, tt := range []struct {
		args string
		code int
		log  string // a regexp
	}{
		{"-nope", 2, "flag provided but not defined: -nope" + usage},
		{"-addr=", 2, "-addr must not be empty" + usage},
		{"-workers 0", 2, "-workers must be between 1 and 1000" + usage},
		{"-workers 1001", 2, "-workers must be between 1 and 1000" + usage},
		{"-queue 0", 2, "-queue and -keep must be at least 1" + usage},
		{"-keep 0", 2, "-queue and -keep must be at least 1" + usage},
		{"-grace 0s", 2, badGrace},
		{"-linger -1s", 2, badGrace},
		{"-log xml", 2, `-log must be text or json, not "xml"` + usage},
		{"start", 2, `unexpected argument "start"` + usage},
		{"-h", 0, usage[2:]},
		{"-addr " + ln.Addr().String(), 1, `.* level=ERROR .* -addr.*\n`},
		{"-items nope.json", 1, failed + `start items: .*\n`},
		{"-items " + journalOf(t, `{"one": 1}`), 1, failed + `start items: .*\.jsonl: .*\n`},
		{"-items " + journalOf(t, "null"), 1, failed + `start items: .*\n`},
		{"-journal " + journalOf(t, "damaged", ""), 1, failed + `start tasks: .*\n`},
		{"-items nope.json -log json", 1, `{.*"level":"ERROR".*}\n`},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // so that what starts all the same ends
		defer cancel()
		var log logBuffer
		code := run(ctx, append([]string{"-addr", "localhost:0"}, strings.Fields(tt.args)...), &log)
		if got := log.String(); code != tt.code || !regexp.MustCompile("^"+tt.log+"$").MatchString(got) {
			t.Errorf("%s: got exit code %d and the log %s\nwant %d and %s", tt.args, code, brief(got), tt.code, tt.log)
		}
	}
}

// A testProcess is the program in a process of its own, and a handler that asks it.
type testProcess struct {
	http.Handler
	*exec.Cmd
	host   string // and port
	stderr io.ReadCloser
	log    logBuffer
	exited chan struct{}
}

// patience is how long a process may take to listen or to stop before it is killed, so that no test waits for ever.
const patience = 10 * time.Second

// startProcess runs the test binary as the program, and returns once it listens. At the end of the test it is killed.
func startProcess(t testing.TB, args ...string) *testProcess {
	t.Helper()
	p := &testProcess{exited: make(chan struct{})}
	p.Cmd = exec.Command(os.Args[0], append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	p.Env = append(os.Environ(), "PLAINAPI_RUN=1")
	var err error
	p.stderr, err = p.StderrPipe()
	if err = errors.Join(err, p.Start()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(os.Kill) })
	defer time.AfterFunc(patience, func() { p.Process.Kill() }).Stop()
	lines, line := bufio.NewReader(p.stderr), ""
	for p.host == "" && err == nil {
		line, err = lines.ReadString('\n')
		io.WriteString(&p.log, line)
		p.host = regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	}
	go func() { io.Copy(&p.log, lines); p.Wait(); close(p.exited) }()
	if err != nil {
		t.Fatalf("it did not start:\n%s", brief(p.log.String()))
	}
	transport := &http.Transport{ResponseHeaderTimeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	p.Handler = remote(p.host, transport)
	return p
}

// end sends a signal, waits for the program to end, and returns its exit code: -1 if the signal ended it.
func (p *testProcess) end(s os.Signal) int {
	p.Process.Signal(s)
	defer time.AfterFunc(patience, func() { p.Process.Kill() }).Stop()
	<-p.exited
	return p.ProcessState.ExitCode()
}

func signalsWork(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process can't send another a signal on Windows")
	}
}

func TestSecondSignalEndsTheProgramAtOnce(t *testing.T) {
	signalsWork(t)
	p := startProcess(t)
	// Until this has ended, the first signal does not end the program.
	taskOf(t, 202, post(p, `{"kind":"sleep","input":{"wait_time":10}}`))
	p.Process.Signal(os.Interrupt)
	for range 2000 { // each request is a round trip, and its reply says whether the signal has arrived
		if do(p, "GET", "/readyz", "").Code == 503 {
			break
		}
	}
	// Not SIGINT again: a shell may have started this in the background with SIGINT ignored, and then it does nothing.
	if code := p.end(syscall.SIGTERM); code != -1 {
		t.Errorf("exit code %d, want the signal to have killed it; the log is\n%s", code, brief(p.log.String()))
	}
}

// TestStopGoesOnWhenNobodyReadsTheLog: Ctrl-C ends the tee in "| tee log.txt" too.
func TestStopGoesOnWhenNobodyReadsTheLog(t *testing.T) {
	signalsWork(t)
	p := startProcess(t)
	p.stderr.Close()
	if code := p.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestStopLosesNoRequest: ten clients on kept-alive connections, a task that runs, and SIGTERM in the middle.
func TestStopLosesNoRequest(t *testing.T) {
	signalsWork(t)
	p := startProcess(t, "-linger", "300ms", "-items", journalOf(t, `{"7": "seven"}`))
	taskOf(t, 202, post(p, `{"kind":"sleep","input":{"wait_time":1}}`))
	if w := do(p, "GET", "/v2/7", ""); w.Body.String() != "\"seven\"\n" {
		t.Errorf("the item from the file: got %d %s", w.Code, brief(w.Body.String()))
	}
	var clients sync.WaitGroup
	served, lost := make(chan bool), make(chan error, 10)
	for range cap(lost) {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: patience}
			defer client.CloseIdleConnections()
			for {
				// A POST: the transport would send a GET again by itself, on another connection.
				resp, err := client.Post("http://"+p.host+"/nope", "", nil)
				if errors.Is(err, syscall.ECONNREFUSED) {
					return // a new connection, and the server is gone
				}
				if err != nil {
					lost <- err
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				select {
				case served <- true:
				default: // it is not counted any more
				}
				if resp.Close {
					return
				}
			}
		})
	}
	go func() { clients.Wait(); close(served) }()
	for range 20 * cap(lost) {
		<-served
	}
	if code := p.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	clients.Wait()
	if len(lost) > 0 {
		t.Errorf("%d clients have lost a request, one of them with: %v", len(lost), <-lost)
	}
	for _, want := range []string{
		`url=http://127\.0\.0\.1:\d+/docs`, "msg=stopped",
		`msg="draining; a second signal ends the program at once" cause="terminated signal received" grace=20s`,
		`msg=served requests=[1-9]\d+ queued=0 running=0 succeeded=1 failed=0 canceled=0`,
	} {
		if log := p.log.String(); !regexp.MustCompile(want).MatchString(log) {
			t.Errorf("the log lacks %s, and ends with\n%s", want, log[max(0, len(log)-600):])
		}
	}
}

// TestKillLosesNoAcknowledgedTask kills the program while it accepts, at a random reply. The next one is asked for every
// task that was acknowledged, and the last one for its end.
func TestKillLosesNoAcknowledgedTask(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	args := []string{"-journal", journalOf(t), "-workers", "2"}
	finished := map[string]time.Time{} // when each acknowledged task did, if that was seen
	for round := range rounds + 1 {
		p, prefer := startProcess(t, args...), "wait=0"
		if round == rounds {
			prefer = "wait=5"
		}
		for id, at := range finished {
			task := taskOf(t, 200, do(p, "GET", "/tasks/"+id, "", "Prefer", prefer))
			if !at.IsZero() && !task.FinishedAt.Equal(at) || round == rounds && !task.Status.Finished() {
				t.Fatalf("%s had finished at %v, and now is %s since %v", id, at, task.Status, task.FinishedAt)
			}
			finished[id] = task.FinishedAt
		}
		replies := make(chan *httptest.ResponseRecorder, 3)
		for range cap(replies) {
			go func() { replies <- post(p, `{"kind":"primes","input":{"n":200000}}`) }()
		}
		last := rand.IntN(cap(replies))
		for i := range cap(replies) {
			if w := <-replies; i <= last || w.Code != 502 { // the kill may have cut it off
				finished[taskOf(t, 202, w).ID] = time.Time{}
			}
			if i == last {
				p.Process.Kill()
			}
		}
		<-p.exited
	}
}

// TestHostileClients: the right status, the connection closed in time, and the next request is answered.
func TestHostileClients(t *testing.T) {
	const get, closing = "GET /healthz HTTP/1.1\r\nHost: x\r\n", "Host: x\r\nConnection: close\r\n"
	const post = "POST /tasks HTTP/1.1\r\nContent-Type: application/json\r\n" + closing
	for _, tt := range []struct {
		name, request string
		status        int           // 0: the client does not read
		cut           time.Duration // when the server closes the connection
	}{
		{"a large header", get + "X: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", 431, 0},
		{"a large body", post + "Transfer-Encoding: chunked\r\n\r\n100001\r\n" + strings.Repeat(" ", 1<<20+1) + "\r\n0\r\n\r\n", 413, 0},
		{"a forged log", "GET /users/%00%ff%0d%0atime=now%1b[2J HTTP/1.1\r\n" + closing + "\r\n", 200, 0},
		{"half a header", get, 0, 5 * time.Second},
		{"half a body", post + "Content-Length: 100\r\n\r\n{", 408, readTimeout},
		{"idle", get + "\r\n", 200, time.Minute},
		{"does not read", get + "\r\n", 0, writeTimeout},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			_, s := appStage(t, roomy, log)
			conn, err := s.Dial(t.Context(), "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			begin := time.Now()
			go io.WriteString(conn, tt.request)
			if tt.status == 0 {
				time.Sleep(tt.cut + time.Second/2)
			}
			reply, _ := io.ReadAll(conn)
			if took := time.Since(begin); took < tt.cut || took >= tt.cut+time.Second {
				t.Errorf("%s: the connection was closed after %v, want %v", tt.name, took, tt.cut)
			}
			if want := fmt.Sprintf("HTTP/1.1 %d ", tt.status); tt.status > 0 && !strings.HasPrefix(string(reply), want) {
				t.Errorf("%s: got %.200q, want %s", tt.name, reply, want)
			}
			if got := s.get(); got != "200 OK" {
				t.Errorf("%s: the next request got %s", tt.name, got)
			}
			got := lines.String()
			if strings.Count(got, "\n") != strings.Count("\n"+got, "\ntime=") || strings.ContainsAny(got, "\x00\r\x1b") {
				t.Errorf("%s: the log was forged: %.500q", tt.name, got)
			}
		})
	}
}

// TestWaitingPoll outlives the server's timeouts, ends with its client, gets its result while the server drains, and
// ends with the server.
func TestWaitingPoll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		log, lines := newLog()
		c := roomy
		c.journal = journalOf(t) // so that the stop leaves a task in the queue
		a, s := appStage(t, c, log)
		var target []string
		for range 5 {
			target = append(target, "/tasks/"+submit(t, a.tasks, "sleep", `{"wait_time":9}`).ID)
		}
		begin := time.Now()
		poll := func(i int, want string) {
			w := do(remote("server", s.client.Transport), "GET", target[i], "", "Prefer", "wait=30")
			var task Task
			json.Unmarshal(w.Body.Bytes(), &task)
			if got := fmt.Sprint(w.Code, " ", task.Status, " after ", time.Since(begin).Round(time.Second)); got != want {
				t.Errorf("got %s, want %s: %s", got, want, brief(w.Body.String()))
			}
		}
		poll(4, "200 queued after 30s") // as long as the server gives other requests
		impatient := &http.Transport{DialContext: s.Dial, ResponseHeaderTimeout: 100 * time.Millisecond}
		do(remote("server", impatient), "GET", target[4], "", "Prefer", "wait=30")
		synctest.Wait()
		if !strings.Contains(lines.String(), "status=499") {
			t.Errorf("the client has left, and the log is %s", brief(lines.String()))
		}
		var polls sync.WaitGroup
		polls.Go(func() { poll(3, "200 succeeded after 36s") })
		polls.Go(func() { poll(4, "200 queued after 36s") }) // it will run after the next start
		synctest.Wait()
		s.stop()
		polls.Wait()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestShutdownEndsAPollThatNoDrainEnds, and the Stop hook waits for the task.
func TestShutdownEndsAPollThatNoDrainEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, s := appStage(t, roomy, discard)
		for i := range a.lifecycle.hooks {
			a.lifecycle.hooks[i].Drain = nil
		}
		target := "/tasks/" + submit(t, a.tasks, "sleep", `{"wait_time":5}`).ID
		reply := make(chan *httptest.ResponseRecorder)
		go func() { reply <- do(remote("server", s.client.Transport), "GET", target, "", "Prefer", "wait=30") }()
		synctest.Wait()
		s.stop()
		polled := taskOf(t, 200, <-reply)
		err := <-s.ended
		if end, _ := a.tasks.Get(polled.ID); polled.Status != Running || end.Status != Succeeded || err != nil {
			t.Errorf("the poll got %s, want running; at the end the task is %s, want succeeded: %v", polled.Status, end.Status, err)
		}
	})
}

// TestFlood: submissions, cancels, lists and polls race, and every task ends exactly once.
func TestFlood(t *testing.T) {
	a, h := newTestApp(t, discard)
	var accepted atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for n := range 100 {
				task, err := a.tasks.Submit("primes", json.RawMessage(`{"n":1000}`))
				if err != nil {
					continue // the queue is full
				}
				accepted.Add(1)
				method, target := []string{"DELETE", "GET", "GET"}[n%3], []string{"/tasks/" + task.ID, "/tasks"}[n%3/2]
				if w := do(h, method, target, "", "Prefer", "wait=5"); !slices.Contains([]int{200, 409, 410}, w.Code) {
					t.Errorf("%s %s: got %d %s", method, target, w.Code, brief(w.Body.String()))
					return
				}
			}
		})
	}
	clients.Wait()
	if err := a.tasks.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	counts := a.tasks.Counts()
	if got := counts[Succeeded] + counts[Canceled]; int64(got) != accepted.Load() || len(a.tasks.jobs) > 10 {
		t.Errorf("%d were accepted, and they became %v; %d are kept, want 10", accepted.Load(), counts, len(a.tasks.jobs))
	}
}

// BenchmarkHandler is the price of all that stands around a handler: log, id, recovery, routing.
func BenchmarkHandler(b *testing.B) {
	bare := http.NewServeMux()
	bare.HandleFunc("GET /users/{username}", func(w http.ResponseWriter, r *http.Request) { (&app{}).readUser(w, r) })
	for name, h := range map[string]http.Handler{
		"bare ServeMux":      bare,
		"whole app":          newApp(config{}, slog.New(slog.NewTextHandler(io.Discard, nil))).handler(),
		"whole app, log off": newApp(config{}, discard).handler(),
	} {
		b.Run(name, func(b *testing.B) { benchmarkHandler(b, h, "/users/Rick") })
	}
}

// BenchmarkSubmit is what the journal costs, over HTTP.
func BenchmarkSubmit(b *testing.B) {
	for name, journal := range map[string]string{"in memory": "", "with a journal": journalOf(b)} {
		b.Run(name, func(b *testing.B) {
			a := newApp(config{workers: 1, queue: math.MaxInt, keep: 1000}, discard)
			if err := a.tasks.Start(journal); err != nil {
				b.Fatal(err)
			}
			defer stopWithin(a.tasks, 0)
			srv := httptest.NewServer(a.handler())
			defer srv.Close()
			b.RunParallel(func(pb *testing.PB) {
				server := remote(srv.Listener.Addr().String(), &http.Transport{})
				for pb.Next() {
					if w := post(server, `{"kind":"primes","input":{"n":2}}`); w.Code != 202 {
						b.Errorf("got %d %s", w.Code, brief(w.Body.String()))
						return
					}
				}
			})
		})
	}
}

// BenchmarkGetWhileTasksRun is the lecture's promise: requests stay fast while tasks compute. The server is a process of
// its own, since the client would compete with the tasks otherwise; try it with GOMAXPROCS=1 too. What counts are the
// percentiles of busy beside those of idle.
func BenchmarkGetWhileTasksRun(b *testing.B) {
	p := startProcess(b)
	for _, name := range []string{"idle", "busy"} {
		b.Run(name, func(b *testing.B) {
			for range map[string]int{"busy": 100}[name] {
				taskOf(b, 202, post(p, `{"kind":"primes","input":{"n":50000000}}`))
			}
			var all []time.Duration
			for b.Loop() {
				begin := time.Now()
				if w := do(p, "GET", "/users/Rick", ""); w.Code != 200 {
					b.Fatalf("got %d %s", w.Code, brief(w.Body.String()))
				}
				all = append(all, time.Since(begin))
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// ---- README.md and README.ko.md

// readme returns a README. They speak of plainapi, so in a module of another name their tests skip.
func readme(t *testing.T, name string) string {
	t.Helper()
	if !strings.HasPrefix(read(t, "go.mod"), "module plainapi\n") {
		t.Skip("the READMEs are plainapi's, and this module has a name of its own")
	}
	return read(t, name)
}

// A block is what stands between two fences.
type block struct{ language, text string }

func blocks(t *testing.T, name string) (blocks []block) {
	t.Helper()
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(readme(t, name), -1) {
		blocks = append(blocks, block{m[1], m[2]})
	}
	return blocks
}

// TestReadmesHaveTheSameCode, to the letter; pictures in text hold words, and may differ.
func TestReadmesHaveTheSameCode(t *testing.T) {
	isPicture := func(b block) bool { return b.language == "text" }
	english := slices.DeleteFunc(blocks(t, "README.md"), isPicture)
	korean := slices.DeleteFunc(blocks(t, "README.ko.md"), isPicture)
	if len(english) != len(korean) || len(english) < 20 {
		t.Fatalf("%d blocks of code in English, %d in Korean", len(english), len(korean))
	}
	for i := range english {
		if english[i] != korean[i] {
			t.Errorf("block %d is\n%s\nin English, and in Korean\n%s", i, brief(english[i].text), brief(korean[i].text))
		}
	}
}

// volatile is what changes in a transcript from run to run, and what it is taken for.
var volatile = []struct {
	shape *regexp.Regexp
	name  string
}{
	{regexp.MustCompile(`\b[a-z2-7]{8}-[1-9]\d*\b`), "ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{regexp.MustCompile(`\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT`), "DATE"},
	{regexp.MustCompile(`(request_id":"|Request-Id: )[0-9a-f]{16}\b`), "$1"},
	{regexp.MustCompile(`Content-Length: \d+`), "LENGTH"}, // it counts the digits of the others
	{regexp.MustCompile(`\b(\d+)\.\d{6} s\b`), "$1 s"},
}

func shapeOf(transcript string) string {
	for _, v := range volatile {
		transcript = v.shape.ReplaceAllString(transcript, v.name)
	}
	return strings.TrimSpace(strings.ReplaceAll(transcript, "\r", ""))
}

// curl does what the curl of a README line would, with the options that the READMEs use.
func (s *stage) curl(t *testing.T, command string) string {
	t.Helper()
	var words []string
	for _, m := range regexp.MustCompile(`'([^']*)'|(\S+)`).FindAllStringSubmatch(command, -1) {
		words = append(words, m[1]+m[2])
	}
	options := flag.NewFlagSet(command, flag.ContinueOnError)
	include, timed := options.Bool("i", false, ""), options.String("w", "", "")
	method, body, header := options.String("X", "GET", ""), options.String("json", "", ""), ""
	options.Func("H", "", func(line string) error { header += line + "\r\n"; return nil })
	if err := options.Parse(words[1:]); err != nil || options.NArg() != 1 {
		t.Fatalf("%s: %v", command, err)
	}
	if *body != "" {
		*method, header = "POST", header+"Content-Type: application/json\r\nAccept: application/json\r\n"
	}
	begin := time.Now()
	conn, err := s.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost:8000\r\n%sContent-Length: %d\r\n\r\n%s",
		*method, strings.TrimPrefix(options.Arg(0), "localhost:8000"), header, len(*body), *body)
	var raw bytes.Buffer
	var content []byte
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
	if err == nil {
		content, err = io.ReadAll(resp.Body)
	}
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if *include {
		content = raw.Bytes()
	}
	if *timed != "" {
		content = fmt.Appendf(content, "%f s\n", time.Since(begin).Seconds())
	}
	return string(content)
}

func TestReadmeTranscriptsHold(t *testing.T) {
	all := blocks(t, "README.md")
	bubble(t, func(t *testing.T) {
		c := roomy
		c.workers = 2
		_, s := appStage(t, c, discard)
		lastID, played := "", 0
		for _, b := range all {
			if b.language != "console" {
				continue
			}
			for part := range strings.SplitSeq("\n"+b.text, "\n$ ") {
				command, want, _ := strings.Cut(part, "\n")
				if !strings.HasPrefix(command, "curl ") {
					continue
				}
				played++
				if !strings.Contains(command, "aaaaaaaa") { // which stands for another run's
					command = volatile[0].shape.ReplaceAllString(command, lastID)
				}
				got := s.curl(t, command)
				if shapeOf(got) != shapeOf(want) {
					t.Errorf("$ %s\ngot\n%s\nwant\n%s", command, brief(got), brief(want))
				}
				lastID = cmp.Or(volatile[0].shape.FindString(got), lastID)
			}
		}
		if played < 8 {
			t.Errorf("only %d curl lines were found", played)
		}
	})
}

// put writes a file into a folder of the test's own.
func put(t *testing.T, dir, path, content string) {
	t.Helper()
	path = filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

var programFiles = []string{"main.go", "router.go", "errors.go", "tasks.go", "lifecycle.go"}

// fileOf finds the name of a snippet's file and what it stands beside: a lesson, or the app.
var fileOf = regexp.MustCompile(`^// (\w+\.go), beside (the app|\w+\.go)`)

// TestReadmeGoCompiles: a snippet is a file beside the lesson that its first line names, or it is
// lifted from the program to the letter.
func TestReadmeGoCompiles(t *testing.T) {
	all, dir, whole := blocks(t, "README.md"), t.TempDir(), ""
	for _, name := range programFiles {
		whole += read(t, name)
	}
	put(t, dir, "go.mod", read(t, "go.mod"))
	for i, b := range all {
		m := fileOf.FindStringSubmatch(b.text)
		switch {
		case b.language != "go":
		case m == nil && !strings.Contains(whole, b.text):
			t.Errorf("this is no part of the program:\n%s", b.text)
		case m != nil && m[2] != "the app":
			alone := fmt.Sprintf("snippet%d/", i)
			put(t, dir, alone+m[1], b.text)
			put(t, dir, alone+m[2], read(t, m[2]))
		}
	}
	goRun(t, dir, "vet", "./...")
}

// goRun runs the go command, and fails the test with what it printed.
func goRun(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOFLAGS=") // of the run around this one
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go %s: %v\n%s", strings.Join(args, " "), err, brief(string(out)))
	}
}

// TestReadmeExampleWorks makes the program the reader's own, as the README says: renamed, with a
// model, a route, a kind, a hook and a test. All tests are green there, and the READMEs' own skip.
func TestReadmeExampleWorks(t *testing.T) {
	all := blocks(t, "README.md")
	if testing.Short() {
		t.Skip("it runs the tests in a copy")
	}
	dir := t.TempDir()
	for _, name := range append(programFiles, "main_test.go") {
		put(t, dir, name, read(t, name))
	}
	put(t, dir, "go.mod", "module example.com/mine\n\ngo 1.26\n")
	main := read(t, "main.go")
	for _, b := range all {
		if m := fileOf.FindStringSubmatch(b.text); m != nil && m[2] == "the app" {
			put(t, dir, m[1], b.text)
		}
		if _, model, ok := strings.Cut(b.text, "$ echo '"); ok {
			model, _, _ = strings.Cut(model, "'")
			put(t, dir, "model.json", model)
		}
		if b.language != "diff" {
			continue
		}
		for hunk := range strings.SplitSeq(b.text, "@@") {
			var old, new string
			_, hunk, _ = strings.Cut(hunk, "\n") // behind @@ stands where it is
			for line := range strings.Lines(hunk) {
				switch line[0] {
				case ' ':
					old += line[1:]
					new += line[1:]
				case '+':
					new += line[1:]
				}
			}
			if hunk != "" && strings.Count(main, old) != 1 {
				t.Errorf("main.go has not one place for\n%s", hunk)
			}
			main = strings.Replace(main, old, new, 1)
		}
	}
	put(t, dir, "main.go", main)
	goRun(t, dir, "build", ".")
	goRun(t, dir, "test", "-short", "-count=1", ".")
}

// difference says what one list has and the other has not.
func difference(listed, there []string) (lines string) {
	for _, s := range slices.Concat(listed, there) {
		if !slices.Contains(there, s) {
			lines += "- " + s + ": it is listed, and not there\n"
		}
		if !slices.Contains(listed, s) {
			lines += "+ " + s + ": it is there, and not listed\n"
		}
	}
	return lines
}

// rows returns the first two cells of each row of the table under a header.
func rows(t *testing.T, name, header string) (rows []string) {
	t.Helper()
	_, after, found := strings.Cut(readme(t, name), "\n"+header)
	table, _, _ := strings.Cut(after, "\n\n")
	if !found {
		t.Fatalf("%s has no table %q", name, header)
	}
	for _, m := range regexp.MustCompile("(?m)^\\| *`?(\\S+?)`? \\| *`?(.*?)`? *\\|").FindAllStringSubmatch(table, -1) {
		rows = append(rows, m[1]+" "+m[2])
	}
	return rows
}

func TestReadmesListEveryFlag(t *testing.T) {
	var usage bytes.Buffer
	run(t.Context(), []string{"-h"}, &usage)
	var flags []string
	for _, m := range regexp.MustCompile(`(?m)^  -(\S+).*\n.*?(?:\(default "?([^")]*)"?\))?$`).FindAllStringSubmatch(usage.String(), -1) {
		if m[1] != "workers" { // its default depends on the machine
			flags = append(flags, "-"+m[1]+" "+m[2])
		}
	}
	for name, header := range map[string]string{"README.md": "| flag |", "README.ko.md": "| 플래그 |"} {
		listed := slices.DeleteFunc(rows(t, name, header), func(row string) bool { return strings.HasPrefix(row, "-workers GOMAXPROCS") })
		if diff := difference(listed, flags); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}

func TestReadmesListEveryRoute(t *testing.T) {
	var routes []string
	for _, r := range (&app{}).routes().Routes() {
		routes = append(routes, r.Method+" "+r.Path)
	}
	for name, header := range map[string]string{"README.md": "| method |", "README.ko.md": "| 메서드 |"} {
		if diff := difference(rows(t, name, header), routes); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
	}
}
