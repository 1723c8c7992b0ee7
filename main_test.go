package main

// The tests, in the order of the files. To copy a lesson with its tests, take its file, everything
// above "// ---- router.go", and the lesson's own part; then let goimports fix the imports.

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/netip"
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
	"testing/iotest"
	"testing/synctest"
	"time"
)

// child is what the test binary runs instead of the tests if PLAINAPI_RUN is set: main, for tests that kill it.
var child func()

func TestMain(m *testing.M) {
	if os.Getenv("PLAINAPI_RUN") != "" {
		child()
	}
	// The first use of os/signal starts a permanent goroutine, which no synctest bubble may contain.
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	signal.Stop(c)
	os.Exit(m.Run())
}

// A logBuffer is a log that can be read while it is being written.
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

// do sends one request to h. header alternates names and values.
func do(h http.Handler, method, target, body string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	for pair := range slices.Chunk(header, 2) {
		r.Header.Add(pair[0], pair[1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// brief shortens what a failing test prints to a readable length.
func brief(s string) string {
	if len(s) > 600 {
		return s[:600] + "…"
	}
	return s
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
		t.Errorf("%s:\ngot  %s\nwant %s", brief(what), brief(fmt.Sprintf("%+v", got)), brief(fmt.Sprintf("%+v", want)))
	}
}

// wantMatch compares a text with a regular expression.
func wantMatch(t testing.TB, what, got, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(got) {
		t.Errorf("%s:\ngot  %s\nwant %s", brief(what), brief(got), brief(pattern))
	}
}

// bubble runs f in a synctest bubble, where time advances when every goroutine is blocked. A deadlock, which panics,
// fails only this test.
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
	defer func() { message = fmt.Sprint(recover()) }()
	f()
	t.Fatal("no panic")
	return ""
}

func benchmarkHandler(b *testing.B, name, target string, h http.Handler) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		r := httptest.NewRequest("GET", target, nil)
		w := &httptest.ResponseRecorder{} // with no Body, so that writes are discarded
		for b.Loop() {
			h.ServeHTTP(w, r)
		}
	})
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

var wildcard = regexp.MustCompile(`\{\w+\}`)

// reveal answers with the pattern that matched and the values of its wildcards: "GET /users/{username}=Rick".
var reveal = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, wildcard.ReplaceAllStringFunc(r.Pattern, func(name string) string {
		return name + "=" + r.PathValue(strings.Trim(name, "{}"))
	}))
})

// routerOf makes a Router from routes, each a string such as "GET /{id}", and other routers.
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

// transcript sends requests to h and checks the responses. A line is "GET /path: " and the status, followed by the
// redirect's target, or the methods that a 405 allows, or the body.
func transcript(t *testing.T, h http.Handler, lines ...string) {
	t.Helper()
	for _, want := range lines {
		request, _, _ := strings.Cut(want, ": ")
		method, target, _ := strings.Cut(request, " ")
		w := do(h, method, target, "")
		said := cmp.Or(w.Header().Get("Location"), w.Header().Get("Allow"), strings.TrimSpace(w.Body.String()))
		wantEqual(t, "the response", fmt.Sprintf("%s: %d %s", request, w.Code, said), want)
	}
}

func TestRouterAnswers(t *testing.T) {
	b, c := routerOf("/b"), routerOf("/c", "GET /{x}")
	root := routerOf("",
		routerOf("/users", "GET /", "GET /{username}", "POST /{username}"),
		routerOf("/users", "DELETE /{username}"),
		routerOf("/bare", routerOf("", "GET "), "POST ", "GET /{id}"),
		routerOf("/t/{tenant}", routerOf("/items", "GET /{$}", "GET /{id}")),
		routerOf("/a", b),
		c,
	)
	b.Include(c) // a second time, in a router that is already included
	b.Get("/late", reveal)
	b.NoMatch = reveal // never used: b is not the outermost router
	root.Get("/own404", http.NotFoundHandler())
	root.NoMatch = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusTeapot) // NoMatch alone decides the status
		fmt.Fprint(w, "none", r.Pattern)
	})
	transcript(t, root.Handler(),
		"GET /users/: 200 GET /users/{$}", "DELETE /users/Rick: 200 DELETE /users/{username}=Rick",
		"HEAD /users/Rick: 200 GET /users/{username}=Rick", // net/http sends no body
		"GET /bare: 200 GET /bare", "GET /t/acme/items/: 200 GET /t/{tenant}=acme/items/{$}",
		"GET /t/a%252F%2F%EB%B3%80/items/7: 200 GET /t/{tenant}=a%2F/변/items/{id}=7",
		"GET /c/1: 200 GET /c/{x}=1", "GET /a/b/c/1: 200 GET /a/b/c/{x}=1", "GET /a/b/late: 200 GET /a/b/late",
		"GET /own404: 404 404 page not found", // the handler's own 404, not NoMatch's
		"GET /t/acme/items?a=1&b=%20: 307 /t/acme/items/?a=1&b=%20", "GET //evil.example/users: 307 /evil.example/users",
		"GET /: 418 none", "GET /users/a/b: 418 none", "GET /a/b/: 418 none", // no route matches
		"GET *: 418 none", "CONNECT example.com:443: 418 none",
		"POST /users: 418 GET, HEAD", // no redirect to a path that has no POST
		"PUT /users/a%2Fb: 418 DELETE, GET, HEAD, POST", "OPTIONS /bare: 418 GET, HEAD, POST",
	)
}

// TestRouterAcceptsWhatServeMuxAccepts checks prefixes beside wildcards that seem to get in their way.
func TestRouterAcceptsWhatServeMuxAccepts(t *testing.T) {
	root := routerOf("", "GET /{page}", "GET /{user}/settings",
		routerOf("/v1", "POST ", "GET /items"),
		routerOf("/users", "DELETE /me", routerOf("/{id}", "DELETE ", "GET /posts"), routerOf("/me", "GET /posts")),
	)
	transcript(t, root.Handler(),
		"GET /v1/items: 200 GET /v1/items", "GET /v1/settings: 200 GET /{user}=v1/settings",
		"GET /v1: 200 GET /{page}=v1", "DELETE /v1: 405 GET, HEAD, POST", "DELETE /v1/settings: 405 GET, HEAD",
		"DELETE /users/me: 200 DELETE /users/me", "GET /users/me: 405 DELETE",
		"GET /users/me/posts: 200 GET /users/me/posts",
	)
	root = routerOf("", routerOf("/users", "GET /"), routerOf("/{tenant}", "GET /items"))
	transcript(t, root.Handler(), "GET /users: 307 /users/", "GET /users/items: 200 GET /{tenant}=users/items")
}

// TestRouterMiddleware checks that a router's runs after the match, and the outermost router's for every request.
func TestRouterMiddleware(t *testing.T) {
	calls, passed := "", ""
	note := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			calls += name
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				passed += name + r.Pattern + " "
				next.ServeHTTP(w, r)
			})
		}
	}
	inner, sub := routerOf("/in", "GET /z"), routerOf("/sub", "GET /")
	inner.Use(note("4"))
	sub.Include(inner)
	sub.Use(note("2"), note("3")) // after the routes, but still around them
	root := routerOf("", "GET /y", sub, routerOf("/again", inner))
	root.Use(note("0"))
	root.Use(note("1"))
	h := root.Handler()
	wantEqual(t, "the calls of middleware", calls, "432410")
	for request, want := range map[string]string{
		"GET /sub/": "0 1 2GET /sub/{$} 3GET /sub/{$} ", "GET /sub/in/z": "0 1 2GET /sub/in/z 3GET /sub/in/z 4GET /sub/in/z ",
		"GET /again/in/z": "0 1 4GET /again/in/z ", "GET /y": "0 1 ", "GET /sub": "0 1 ", "GET /sub/a": "0 1 ",
		"POST /sub/": "0 1 ", "OPTIONS *": "0 1 ", "CONNECT x:443": "0 1 ",
	} {
		method, target, _ := strings.Cut(request, " ")
		passed = ""
		do(h, method, target, "")
		wantEqual(t, request+" passes", passed, want)
	}
}

type namedHandlers struct{}

func (namedHandlers) readUserID(http.ResponseWriter, *http.Request) {}
func read_user[T any](http.ResponseWriter, *http.Request)           {}

func TestRoutesListsAllRoutes(t *testing.T) {
	root, outer := NewRouter("", "a", "b", "c"), NewRouter("/outer", "out")
	inner, last := NewRouter("/{in}", "in"), NewRouter("/last", "last")
	inner.Get("/", http.HandlerFunc(namedHandlers{}.readUserID))
	inner.Handle("PATCH", "", http.HandlerFunc(read_user[int])).Example = `{}`
	outer.Delete("/x", struct{ http.Handler }{})
	last.Post("", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	outer.Include(inner)
	outer.Include(last)
	root.Include(outer)
	root.Include(last)
	root.Use(nil) // Handler would panic; listing routes calls no middleware
	var got strings.Builder
	for _, r := range root.Routes() {
		line, _ := json.Marshal(r)
		fmt.Fprintf(&got, "%s\n", line)
	}
	wantEqual(t, "the routes", got.String(), `{"method":"DELETE","path":"/outer/x","tags":["a","b","c","out"],"summary":"","example":""}
{"method":"GET","path":"/outer/{in}/","tags":["a","b","c","out","in"],"summary":"Read User ID","example":""}
{"method":"PATCH","path":"/outer/{in}","tags":["a","b","c","out","in"],"summary":"Read_user","example":"{}"}
{"method":"POST","path":"/outer/last","tags":["a","b","c","out","last"],"summary":"","example":""}
{"method":"POST","path":"/last","tags":["a","b","c","last"],"summary":"","example":""}
`)
}

func TestRouterPanicNamesTheMistake(t *testing.T) {
	for want, line := range map[string]func(){
		`router "users"`:   func() { NewRouter("users") },
		`router "/users/"`: func() { NewRouter("/users/") },
		`"GET /{x...}/"`:   func() { NewRouter("/{x...}") },
		"route GET /ux: the path must be empty or start with a slash": func() { NewRouter("/u").Get("x", reveal) },
		`"GET /u/{id"`:       func() { NewRouter("/u").Get("/{id", reveal) },
		"route  /u/x":        func() { NewRouter("/u").Handle("", "/x", reveal) },
		"route G T /u/x":     func() { NewRouter("/u").Handle("G T", "/x", reveal) },
		"route G\tT /u/x":    func() { NewRouter("/u").Handle("G\tT", "/x", reveal) },
		"route CONNECT /u/x": func() { NewRouter("/u").Handle("CONNECT", "/x", reveal) },
		"route GET /u/nil: the handler must not be nil": func() { NewRouter("/u").Get("/nil", nil) },
		"route GET /u/f: the handler must not be nil":   func() { NewRouter("/u").Get("/f", http.HandlerFunc(nil)) },
		`"GET "`:         func() { routerOf("", "GET ").Handler() }, // neither prefix nor path
		`"GET /u/a/{y}"`: func() { routerOf("/u", "GET /{x}/b", routerOf("/a", "GET /{y}")).Handler() },
	} {
		if got := mustPanic(t, line); !strings.Contains(got, want) {
			t.Errorf("got %q, want it to name %s", got, want)
		}
	}
}

// TestDocsListsTheRoutes expects those that exist at the first request, as JSON that can't end its script element.
func TestDocsListsTheRoutes(t *testing.T) {
	root := NewRouter("")
	docs := root.Docs()
	root.Post("/later", reveal).Example = "</script><script>alert(1)</script><!--<script>"
	root.Use(nil) // the page calls no middleware
	w := do(docs, "GET", "/docs", "")
	wantEqual(t, "the type of the page", w.Header().Get("Content-Type"), "text/html; charset=utf-8")
	_, got, _ := strings.Cut(w.Body.String(), `<script type="application/json" id="routes">`)
	got, _, _ = strings.Cut(got, "</script>")
	want, _ := json.Marshal(root.Routes()) // with \u003c for <
	wantEqual(t, "the routes in the page", got, string(want))
}

// TestDocsPolicyAllowsOnlyItsOwnScript checks each script and style as a browser does: by its hash in the policy.
func TestDocsPolicyAllowsOnlyItsOwnScript(t *testing.T) {
	w := do(NewRouter("").Docs(), "GET", "/docs", "")
	page, policy := w.Body.String(), w.Header().Get("Content-Security-Policy")
	for _, m := range regexp.MustCompile(`(?s)<(script|style)>(.*?)</`).FindAllStringSubmatch(page, -1) {
		sum := sha256.Sum256([]byte(m[2]))
		hash := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		policy = strings.Replace(policy, m[1]+"-src "+hash, m[1]+"-src its hash", 1)
	}
	wantEqual(t, "the policy", policy, "default-src 'none'; script-src its hash; style-src its hash; connect-src 'self'; "+
		"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	blocked := regexp.MustCompile(`<[^>]*\s(on[a-z]+|style|src)=|innerHTML|https?://`)
	wantEqual(t, "what the policy would block in the page", blocked.FindString(page), "")
}

// BenchmarkRouter compares a Router with ServeMuxes nested with StripPrefix.
func BenchmarkRouter(b *testing.B) {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	mount := func(prefix string, h http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.Handle(prefix+"/", http.StripPrefix(prefix, h))
		return mux
	}
	users, mux := NewRouter("/users"), http.NewServeMux()
	users.Get("/{username}", ok)
	mux.Handle("GET /{username}", ok)
	benchmarkHandler(b, "one prefix/Router", "/users/Rick", routerOf("", users).Handler())
	benchmarkHandler(b, "one prefix/StripPrefix", "/users/Rick", mount("/users", mux))
	benchmarkHandler(b, "two prefixes/Router", "/v1/users/Rick", routerOf("", routerOf("/v1", users)).Handler())
	benchmarkHandler(b, "two prefixes/StripPrefix", "/v1/users/Rick", mount("/v1", mount("/users", mux)))
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

	for _, target := range []string{"/v2/1", "/v2/5"} {
		w := do(h, "GET", target, "", "X-Request-Id", "example")
		fmt.Printf("%d %s\n%s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	// Output:
	// 200 application/json
	// "Boostcamp"
	// 404 application/problem+json
	// {"type":"about:blank","title":"Not Found","status":404,"detail":"아이템을 찾을 수 없습니다 [id: 5]","request_id":"example"}
}

// problemOf returns the problem in a response (RFC 9457). A response that has no complete one ends the test.
func problemOf(t *testing.T, w *httptest.ResponseRecorder) (p Problem) {
	t.Helper()
	err, id := json.Unmarshal(w.Body.Bytes(), &p), w.Header().Get("X-Request-Id")
	want := Problem{"about:blank", http.StatusText(w.Code), w.Code, p.Detail, p.Errors, id}
	isProblem := w.Header().Get("Content-Type") == "application/problem+json"
	if err != nil || id == "" || !isProblem || !reflect.DeepEqual(p, want) {
		t.Fatalf("got %d with %v and %s, want a problem", w.Code, w.Header(), brief(w.Body.String()))
	}
	return p
}

// Endpoints that return err, panic with p, flush, and answer.
func fail(err error) Endpoint { return func(http.ResponseWriter, *http.Request) error { return err } }
func panics(p any) Endpoint   { return func(http.ResponseWriter, *http.Request) error { panic(p) } }
func flush(w http.ResponseWriter, _ *http.Request) error {
	return http.NewResponseController(w).Flush()
}
func writes(status int, v any) Endpoint {
	return func(w http.ResponseWriter, _ *http.Request) error { return WriteJSON(w, status, v) }
}

// wrapped is a ResponseWriter wrapped as middleware does it.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// holding holds back what is written, as middleware that compresses does.
type holding struct{ wrapped }

func (holding) WriteHeader(int)             {}
func (holding) Write(p []byte) (int, error) { return len(p), nil }

// brokenWriter is a ResponseWriter whose writes fail and that can't be flushed.
type brokenWriter struct{ http.ResponseWriter }

func (w brokenWriter) Write(p []byte) (int, error) {
	w.ResponseWriter.Write(p)
	return 0, io.ErrClosedPipe
}

// observed serves one request with h inside Observe. The client is here, has gone, or can't be written to. It returns
// the response, what h panicked with, and the level, status, cause and "stack" of the one log line.
func observed(t *testing.T, client string, h http.Handler) (w *httptest.ResponseRecorder, panicked any, said string) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	log, lines := newLog()
	w = httptest.NewRecorder()
	to := map[string]http.ResponseWriter{"here": w, "gone": w, "broken": brokenWriter{w}}[client]
	if client == "gone" {
		leave()
	}
	func() {
		defer func() { panicked = recover() }()
		Observe(log, h).ServeHTTP(to, httptest.NewRequestWithContext(ctx, "GET", "/", nil))
	}()
	line := regexp.MustCompile(`^time=\S+ level=(\w+) .* status=(\d+) .* request_id=\S+` +
		`(?: cause=(\w+|".*?"))?(?: (stack)=".*panic\(.*")?\n$`)
	return w, panicked, strings.TrimSpace(line.ReplaceAllString(lines.String(), "$1 $2 $3 $4"))
}

// inWrapped calls e with a wrapped ResponseWriter.
func inWrapped(e Endpoint) Endpoint {
	return func(w http.ResponseWriter, r *http.Request) error { e.ServeHTTP(wrapped{w}, r); return nil }
}

var (
	errSecret   = errors.New("secret")
	errTaken    = Errorf(409, "taken") // shared, since Because copies it
	errTooLarge = fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 9})
)

// TestErrorForClient checks the status and the detail, and that nothing else of an error is sent.
func TestErrorForClient(t *testing.T) {
	check := func(want string, e Endpoint) {
		t.Helper()
		w, _, _ := observed(t, "here", e)
		wantEqual(t, "the response", fmt.Sprint(w.Code, " ", problemOf(t, w).Detail), want)
		wantEqual(t, "secrets in the response", strings.Count(fmt.Sprint(w.Header(), w.Body), "secret"), 0)
	}
	beyond := Errorf(600, "secret")
	beyond.Header.Set("Retry-After", "secret")
	check("409 taken", fail(errTaken.Because(errSecret)))
	check("409 taken", fail(errTaken))
	check("400 odd", fail(fmt.Errorf("secret: %w", Errorf(400, "odd"))))
	check("409 taken", inWrapped(fail(errTaken)))
	check("599 odd", fail(Errorf(599, "odd")))
	check("500 ", fail(beyond))
	check("500 ", fail(Errorf(399, "secret")))
	check("413 the body is larger than 9 bytes", fail(errTooLarge))
	check("500 ", fail(errSecret))
	check("500 ", fail(context.Canceled)) // not this request's context
	check("500 ", panics(errSecret))
	check("500 ", writes(1000, 1)) // net/http panics
	check("500 ", writes(200, math.NaN()))
}

// TestErrorForLog checks the level, the status, the cause and the stack in the log.
func TestErrorForLog(t *testing.T) {
	check := func(want, client string, e Endpoint) {
		t.Helper()
		_, _, got := observed(t, client, e)
		wantEqual(t, "the log", got, want)
	}
	const notWritten = "write the response: io: read/write on closed pipe"
	check(`INFO 409 "409 taken: secret"`, "here", fail(errTaken.Because(errSecret)))
	check(`INFO 409 "find: 409 taken"`, "here", fail(fmt.Errorf("find: %w", errTaken)))
	check(`ERROR 500 "600 odd"`, "here", fail(Errorf(600, "odd")))
	check(`INFO 413 "read: http: request body too large"`, "here", fail(errTooLarge))
	check(`ERROR 500 "panic: oh" stack`, "here", panics("oh"))
	check(`ERROR 500 "encode the response: json: unsupported value: NaN"`, "here", writes(200, math.NaN()))
	check("ERROR 500 secret", "gone", fail(errSecret))
	check(`INFO 409 "409 taken\n`+notWritten+`"`, "broken", fail(errTaken))
	check(`ERROR 500 "feature not supported\n`+notWritten+`"`, "broken", flush) // not flushed, so not begun
}

// TestErrorAbortsABegunResponse expects that it never looks complete; without a client, no response begins.
func TestErrorAbortsABegunResponse(t *testing.T) {
	check := func(want, client string, e Endpoint) {
		t.Helper()
		w, panicked, log := observed(t, client, e)
		got := fmt.Sprintf("%v after %q: %s", panicked, w.Body, log)
		wantMatch(t, "the panic, the body and the log", got, `^net/http: abort Handler after "(\\"half\\"\\n)?": `+want+"$")
	}
	after := func(first, then Endpoint) Endpoint {
		return func(w http.ResponseWriter, r *http.Request) error { return errors.Join(first(w, r), then(w, r)) }
	}
	begin := func(status int) Endpoint {
		return func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(status); return io.EOF }
	}
	half := func(w http.ResponseWriter, _ *http.Request) error { return json.NewEncoder(w).Encode("half") }
	flusher := func(w http.ResponseWriter, _ *http.Request) error { w.(http.Flusher).Flush(); return io.EOF }
	check("ERROR 200 EOF", "here", after(half, fail(io.EOF)))
	check("ERROR 200 EOF", "here", after(flush, fail(io.EOF)))
	check("ERROR 200 EOF", "here", func(w http.ResponseWriter, r *http.Request) error {
		after(half, fail(io.EOF)).ServeHTTP(holding{wrapped{w}}, r)
		return nil
	})
	check("ERROR 200 EOF", "here", flusher)
	check("ERROR 200 EOF", "here", begin(200))
	check("ERROR 101 EOF", "here", begin(101))
	check("ERROR 200", "here", after(half, panics(http.ErrAbortHandler)))
	check(`ERROR 200 "panic: oh" stack`, "gone", after(half, panics("oh")))
	check(`INFO 499 "409 taken: context canceled"`, "gone", fail(errTaken.Because(context.Canceled)))
	check("INFO 499", "gone", panics(http.ErrAbortHandler))
	check(`ERROR 201 "write the response: io: read/write on closed pipe"`, "broken", writes(201, "half"))
}

func TestErrorResponseReplacesTheFailedOne(t *testing.T) {
	odd := Invalid(FieldError{[]string{"path", "id"}, "is <odd>"}, FieldError{[]string{"body"}, "is 변"})
	odd.Header.Set("Retry-After", "7")
	w := do(Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		const stale = "Content-Length Content-Encoding Content-Range Content-Disposition ETag Last-Modified"
		for name := range strings.FieldsSeq(stale + " Content-Type Cache-Control") {
			w.Header().Set(name, "5")
		}
		return odd
	})), "GET", "/", "", "X-Request-Id", "x")
	wantEqual(t, "the headers", w.Header(), http.Header{
		"Cache-Control": {"no-store"}, "Content-Type": {"application/problem+json"}, "Retry-After": {"7"},
		"X-Content-Type-Options": {"nosniff"}, "X-Request-Id": {"x"},
	})
	wantEqual(t, "the body", w.Body.String(), `{"type":"about:blank","title":"Unprocessable Entity","status":422,`+
		`"detail":"path.id is <odd>; body is 변",`+
		`"errors":[{"loc":["path","id"],"msg":"is <odd>"},{"loc":["body"],"msg":"is 변"}],"request_id":"x"}`+"\n")
}

// TestErrorKeepsTheEncodingOfMiddleware checks middleware that sets the header and encodes what it gets, errors too.
func TestErrorKeepsTheEncodingOfMiddleware(t *testing.T) {
	check := func(want string, next http.Handler) {
		t.Helper()
		w := do(Observe(discard, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			next.ServeHTTP(w, r)
		})), "GET", "/", "")
		wantEqual(t, "the Content-Encoding", w.Header().Get("Content-Encoding"), want)
	}
	overwrites := Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Encoding", "br")
		return errTaken
	})
	check("gzip", inWrapped(overwrites))
	check("", overwrites)              // middleware that does not encode after all
	check("", inWrapped(panics("oh"))) // its 500 goes past the middleware
}

func TestBecauseCopiesTheHeader(t *testing.T) {
	errTaken.Because(io.EOF).Header.Set("Retry-After", "1")
	wantEqual(t, "the header of the original", errTaken.Header, http.Header{})
}

func TestWriteJSONSendsNoBodyWhereTheStatusForbidsIt(t *testing.T) {
	for _, status := range []int{204, 205, 304} {
		w := do(Observe(discard, writes(status, nil)), "GET", "/", "")
		wantEqual(t, "the response", fmt.Sprint(w.Code, w.Header().Get("Content-Type"), w.Body), fmt.Sprint(status, ""))
	}
}

// statusOf sends a GET to h over a real connection.
func statusOf(t *testing.T, h http.Handler) int {
	srv := httptest.NewServer(h)
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	fatalIf(t, err)
	resp.Body.Close()
	return resp.StatusCode
}

// TestHijackedConnectionIsTheHandlers expects a log line without a status, and an error that is only logged.
func TestHijackedConnectionIsTheHandlers(t *testing.T) {
	log, lines := newLog()
	done := make(chan bool, 1)
	observed := Observe(log, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return err
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\n\r\n")
		return io.EOF
	}))
	wantEqual(t, "the status", statusOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		observed.ServeHTTP(w, r)
	})), 299)
	<-done
	wantMatch(t, "the log", lines.String(), `^time=\S+ level=ERROR msg=request .* status=0 .* hijacked=true cause=EOF\n$`)
}

// TestResponseControllerWorksThroughObserve needs a real connection: a recorder takes a 103 for the final response.
func TestResponseControllerWorksThroughObserve(t *testing.T) {
	wantEqual(t, "the status", statusOf(t, Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(http.StatusEarlyHints) // does not begin the final response
		return cmp.Or[error](http.NewResponseController(w).SetReadDeadline(time.Time{}), errTaken)
	}))), 409)
}

func TestLogHasOneLinePerRequest(t *testing.T) {
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
		do(h, "GET", "/users/a%0Alevel=ERROR%1b%5B2J%22", "", "X-Request-Id", "0")
		do(h, "HEAD", "/users/x", "", "X-Request-Id", "1")
		do(h, "GET", "/nothing", "", "X-Request-Id", "2")
		do(h, "GET", "/nowhere", "", "X-Request-Id", "3")
		got := regexp.MustCompile(`(?m)^time=\S+ `).ReplaceAllString(lines.String(), "")
		wantEqual(t, "the log", got, `level=INFO msg=request method=GET path="/users/a\nlevel=ERROR\x1b[2J\"" `+
			`route=/users/{username} status=200 bytes=5 duration=5s request_id=0
level=INFO msg=request method=HEAD path=/users/x route=/users/{username} status=200 bytes=0 duration=5s request_id=1
level=INFO msg=request method=GET path=/nothing route=/nothing status=200 bytes=0 duration=0s request_id=2
level=INFO msg=request method=GET path=/nowhere route="" status=404 bytes=19 duration=0s request_id=3
`)
	})
}

func TestRequestID(t *testing.T) {
	const made = "[0-9a-f]{16}"
	long, seen := strings.Repeat("x", 64), map[string]bool{}
	for sent, want := range map[string]string{
		"A-z_0.9": "A-z_0.9", long: long, long + "x": made, "": made, "a b": made, "a\nb": made, `a"b`: made, "é": made,
	} {
		log, lines := newLog()
		got := do(Observe(log, fail(nil)), "GET", "/", "", "X-Request-Id", sent).Header().Get("X-Request-Id")
		wantMatch(t, "the id made of "+sent, got, "^"+want+"$")
		wantMatch(t, "the log", lines.String(), " request_id="+got+"\n$")
		wantEqual(t, "the id was there before", seen[got], false)
		seen[got] = true
	}
}

func TestEndpointObservesItself(t *testing.T) {
	lines := &logBuffer{}
	defer log.SetOutput(log.Writer())
	log.SetOutput(lines) // slog.Default() writes there
	problemOf(t, do(fail(errTaken), "GET", "/", ""))
	wantMatch(t, "the log", lines.String(), `cause="409 taken"`)
}

type person struct {
	Name string              `json:"name"`
	Age  int                 `json:"age"`
	Born time.Time           `json:"born"`
	Home struct{ Floor int } `json:"home"`
}

// unborn is what Validate returns for any negative age; callers must not change it.
var unborn = []FieldError{{[]string{"age"}, "must not be negative"}, {[]string{"name"}, "must not be given yet"}}

func (p *person) Validate() []FieldError {
	if p.Age < 0 {
		return unborn
	}
	return nil
}

// selfRead reads its own JSON, into a struct.
type selfRead struct{}

func (selfRead) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, new(struct {
		C string `json:"c"`
	}))
}

// told returns what the client is told about an error: the status, and the fields at fault or the detail.
func told(err error) string {
	p := NewProblem(err)
	if p.Status == http.StatusUnprocessableEntity {
		return fmt.Sprint(p.Status, " ", p.Errors)
	}
	return fmt.Sprint(p.Status, " ", p.Detail)
}

func TestReadJSON(t *testing.T) {
	check := func(want, contentType string, length int64, body io.Reader) { // the length is -1 if unknown
		t.Helper()
		var p person
		r := httptest.NewRequest("POST", "/", body)
		r.ContentLength = length
		r.Header.Set("Content-Type", contentType)
		err := ReadJSON(httptest.NewRecorder(), r, &p)
		wantEqual(t, "ReadJSON", cmp.Or(p.Name, told(err)), want)
	}
	const js, tooLarge = "application/json", "413 the body is larger than 1048576 bytes"
	text, broken := strings.NewReader, iotest.ErrReader
	check("변", js+"; charset=utf-8", 15, text(`{"name": "변"}`))
	check("415 the Content-Type must be application/json", "application/x-www-form-urlencoded", 2, text("{}"))
	check("415 the Content-Type must be application/json", js+";;", 2, text("{}"))
	check("408 the body did not arrive in time", js, 9, broken(os.ErrDeadlineExceeded))
	check("400 the body could not be read in full", js, 9, broken(io.ErrUnexpectedEOF))
	check("422 [{[body] must be an object}]", js, 1<<20, text(`"`+strings.Repeat("x", 1<<20-2)+`"`))
	check(tooLarge, js, -1, text(strings.Repeat("[", 1<<20+1)))
	check(tooLarge, js, 1<<20+1, broken(io.ErrUnexpectedEOF)) // rejected unread: see Expect: 100-continue
}

// TestDecodeJSONNamesWhatIsWrong expects vague words about types that read their own JSON.
func TestDecodeJSONNamesWhatIsWrong(t *testing.T) {
	check := func(want, data string, v any) {
		t.Helper()
		wantEqual(t, "DecodeJSON", told(DecodeJSON([]byte(data), v, "body", "in")), want)
	}
	const shapeless = "422 [{[body in] does not have the right shape}]"
	const tooOld = "422 [{[body in age] must not be negative} {[body in name] must not be given yet}]"
	long := strings.Repeat("한", 64)
	check("400 body.in is not valid JSON: see byte 0", "", new(any))
	check("400 body.in is not valid JSON: see byte 4", "{} {}", new(any))
	check("400 body.in is not valid UTF-8", "{\"name\": \"\xff\"}", new(any))
	check("422 [{[body in] must not be null}]", " null ", new(any))
	check(`422 [{[body in n"me] is not a known field}]`, `{"n\"me": "Rick"}`, new(person))
	check("422 [{[body in "+long+"] is not a known field}]", `{"`+long+long+`": 1}`, new(person))
	check("422 [{[body in home Floor] must be an integer within range}]", `{"home": {"Floor": "1"}}`, new(person))
	check(shapeless, `{"born": "now"}`, new(person))
	check(tooOld, `{"age": -1}`, new(person))
	check(tooOld, `{"age": -1}`, new(person)) // again
	check("500 ", `{}`, person{})             // not a pointer: the program's fault
	check("422 [{[body in] must be a number}]", `"x"`, new(float32))
	check("422 [{[body in] must be true or false}]", `"x"`, new(bool))
	check("422 [{[body in] must be an integer within range}]", `300`, new(int8))
	check("422 [{[body in] must be an array}]", `1`, new([1]int))
	check("422 [{[body in] must be an object}]", `1`, new(map[string]int))
	check("422 [{[body in] must be a string}]", `1`, new(string))
	check("422 [{[body in] must be a number}]", `true`, new(json.Number))
	for _, v := range []any{new(time.Time), new(netip.Addr), new(net.IP), new([]byte), new(big.Float), new(slog.Level)} {
		check(shapeless, "{}", v) // slog.Level is an int that reads its name
	}
	// Go 1.26 knows the place inside nest, Go 1.27 does not.
	nested := told(DecodeJSON([]byte(`{"nest": {"c": 5}}`), new(struct{ Nest selfRead }), "body", "in"))
	wantMatch(t, "a type that reads its own JSON", nested, regexp.QuoteMeta(shapeless)+`|^422 \[\{\[body in Nest c`)
	// On one version or the other, encoding/json names a place where this would be false.
	for data, untrue := range map[string]string{
		`{"tags": ["a", 5]}`: "in tags] must be a s", `{"stock": {"x": "y"}}`: "in stock] must be an i", `{"nest": {"c": 5}, "c": "x"}`: "in c]",
		`{"tags": [[1]]}`: "in tags] must be a s", `{"stock": {"x": {}}}`: "in stock] must be an i", `{"n": true}`: "must be an i",
		`{"all": {"x": 1}}`: "in all] must be an o",
	} {
		var v struct {
			Tags  []string                  `json:"tags"`
			Stock map[string]int            `json:"stock"`
			Nest  selfRead                  `json:"nest"`
			C     string                    `json:"c"`
			N     int                       `json:"n,string"`
			All   map[string]map[string]int `json:"all"`
		}
		wantEqual(t, data+" says "+untrue, strings.Contains(told(DecodeJSON([]byte(data), &v, "body", "in")), untrue), false)
	}
	for _, part := range []string{"x", "x."} {
		e := DecodeJSON([]byte(`{"`+strings.Repeat(part, 1<<19)+`": "x"}`), new(map[string]int), "body")
		wantEqual(t, "a short error", len(e.Error()) <= 4000, true)
	}
}

// FuzzDecodeJSON expects an error of the client's that names body, and is short.
func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"home": {"Floor": [" "]}, "born": {"a\"b": 1}, "tags": [[{}], "\ud800"], "stock": {"a.b": {}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var v struct {
			person
			Tags  [][]float64               `json:"tags"`
			Stock map[int]map[string]*uint8 `json:"stock"`
			Nest  []selfRead                `json:"nest"`
		}
		if err := DecodeJSON(data, &v, "body"); err != nil {
			p := NewProblem(err)
			wantMatch(t, "the problem", fmt.Sprint(p.Status, " ", p.Detail), `^4(00|22) body`)
			wantEqual(t, "it is short", len(p.Detail) < 10_000, true)
		}
	})
}

func TestParseInt(t *testing.T) {
	const wrong = "0 422 path.id must be a 64-bit integer"
	for in, want := range map[string]string{
		"+5": "5 <nil>", "-5": "-5 <nil>", "010": "10 <nil>", "9223372036854775807": "9223372036854775807 <nil>",
		"-9223372036854775808": "-9223372036854775808 <nil>", "9223372036854775808": wrong, "": wrong, "x": wrong,
		"5.0": wrong, "0x5": wrong, "1_000": wrong, " 5": wrong,
	} {
		wantEqual(t, in, fmt.Sprint(ParseInt(in, "path", "id")), want)
	}
}

// ---- tasks.go

func ExampleTasks() {
	greet := func(_ context.Context, task Task, _ func(float64)) (any, error) {
		var name string
		err := json.Unmarshal(task.Input, &name)
		return "hello " + name, err
	}
	tasks := NewTasks(Config{Kinds: map[string]Kind{"greet": {Run: greet}}, Log: discard})
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
	"echo":   {Run: echo},
	"refuse": {Run: echo, Check: func(json.RawMessage) (json.RawMessage, error) { return nil, errors.New("refused") }},
	"fill":   {Run: echo, Check: func(json.RawMessage) (json.RawMessage, error) { return json.RawMessage("2"), nil }},
	"garble": {Run: echo, Check: func(json.RawMessage) (json.RawMessage, error) { return json.RawMessage("{"), nil }},
	"second": {Run: runSecond},
	"fail":   {Run: runOf(func(json.RawMessage) (any, error) { return "x", errors.New("secret") })},
	"panic":  {Run: runOf(func(json.RawMessage) (any, error) { panic("secret") })},
	"itself": {Run: func(_ context.Context, task Task, _ func(float64)) (any, error) { return task, nil }},
	"NaN":    {Run: runOf(func(json.RawMessage) (any, error) { return math.NaN(), nil })},
	"deep":   {Run: runOf(func(json.RawMessage) (any, error) { return json.RawMessage(nestedTo(10_000)), nil })},
}

var echo = runOf(func(input json.RawMessage) (any, error) { return input, nil })

// lastCause is why the context of a runSecond was canceled last.
var lastCause atomic.Value

// runSecond takes a second. Once its context is canceled, it goes on for a minute.
func runSecond(ctx context.Context, _ Task, progress func(float64)) (any, error) {
	for _, p := range []float64{0.5, 0.1, -1, math.NaN()} {
		progress(p)
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
		lastCause.Store(context.Cause(ctx).Error())
		time.Sleep(time.Minute)
		progress(0.9)
	}
	return nil, nil
}

// runOf makes a Run of f, which reports too much progress.
func runOf(f func(input json.RawMessage) (any, error)) Run {
	return func(_ context.Context, task Task, progress func(float64)) (any, error) {
		progress(7)
		return f(task.Input)
	}
}

func nestedTo(depth int) string { return strings.Repeat("[", depth) + strings.Repeat("]", depth) }

// errorText is a Config.Error that tells clients everything.
func errorText(err error) json.RawMessage { return json.RawMessage(strconv.Quote(err.Error())) }

// startTasks starts a Tasks that is stopped at the end of the test. It has one worker unless c says otherwise.
func startTasks(t testing.TB, c Config, journal string) *Tasks {
	t.Helper()
	if c.Error == nil {
		c.Error = errorText
	}
	c.Kinds, c.Log, c.Workers = testKinds, cmp.Or(c.Log, discard), cmp.Or(c.Workers, 1)
	tasks := NewTasks(c)
	fatalIf(t, tasks.Start(journal))
	t.Cleanup(func() { stopWithin(tasks, time.Hour) }) // wait for Runs that go on after the cut-off
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

// inputsOf identifies tasks by their inputs.
func inputsOf(tasks []Task) (s string) {
	for _, task := range tasks {
		s += string(task.Input) + " "
	}
	return strings.TrimSpace(s)
}

// statesOf returns each task's status, attempt, progress, and result or error.
func statesOf(tasks ...Task) string {
	var states []string
	for _, t := range tasks {
		state := fmt.Sprintf("%s %d %v %s%s", t.Status, t.Attempt, t.Progress, string(t.Result), string(t.Error))
		states = append(states, strings.TrimSpace(state))
	}
	return strings.Join(states, ", ")
}

func wantCount(t testing.TB, text, part string, want int) {
	t.Helper()
	if got := strings.Count(text, part); got != want {
		t.Errorf("found %[2]q %[1]d times, want %[3]d, in %[4]s", got, part, want, brief(text))
	}
}

func TestTaskFromQueuedToFinished(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks, begin := startTasks(t, Config{}, ""), time.Now().UTC()
		submit(t, tasks, "second", "") // makes the next one wait
		queued := submit(t, tasks, "second", "5")
		want := Task{ID: queued.ID, Kind: "second", Status: Queued, Input: json.RawMessage("5"), CreatedAt: begin}
		wantEqual(t, "the task that was submitted", queued, want)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		running, _ := tasks.Wait(ctx, queued.ID) // returns the task in its current state
		want.Status, want.Attempt, want.Progress, want.StartedAt = Running, 1, 0.5, begin.Add(time.Second)
		wantEqual(t, "the task when Wait times out", running, want)
		want.Status, want.Progress, want.Result = Succeeded, 1, json.RawMessage("null")
		want.FinishedAt = begin.Add(2 * time.Second)
		wantEqual(t, "the finished task", wait(t, tasks, queued.ID), want)
	})
}

func TestTaskOutcomesAreIndependent(t *testing.T) {
	check := func(kind, input, want, cause string, problem func(error) json.RawMessage) { // cause is in the log
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Error: problem, Log: log}, journalOf(t))
			data := json.RawMessage(input)
			task, err := tasks.Submit(kind, data)
			got := fmt.Sprint(err)
			clear(data) // the caller may reuse it: the task has a copy
			if err == nil {
				got = strings.Replace(statesOf(wait(t, tasks, task.ID)), task.ID, "ID", 1)
			}
			wantMatch(t, "a task of the kind "+kind, got, "^"+regexp.QuoteMeta(want))
			_, err = json.Marshal(tasks.List("", 9))
			wantEqual(t, "listing a task of the kind "+kind, err, nil)
			after := wait(t, tasks, submit(t, tasks, "echo", "").ID)
			wantEqual(t, "the task after "+kind, after.Status, Succeeded)
			synctest.Wait()
			errs, line := min(1, len(cause)), fmt.Sprintf("id=%s kind=%s duration=0s cause=%s", task.ID, kind, cause)
			wantCount(t, lines.String(), "level=ERROR", errs)
			wantCount(t, lines.String(), line, errs)
		})
	}
	check("fill", "1", "succeeded 1 1 2", "", nil)
	check("refuse", "1", "refused", "", nil)
	check("echo", `"<b>&아이템"`, `succeeded 1 1 "<b>&아이템"`, "", nil)
	const itself = `{"id":"ID","kind":"itself","status":"running","attempt":1,"progress":0,"input":5,`
	check("itself", "5", "succeeded 1 1 "+itself, "", nil)
	check("echo", "{", ErrBadInput.Error(), "", nil)
	check("echo", "1,2", ErrBadInput.Error(), "", nil)           // only a list can hold both
	check("echo", nestedTo(9_999), ErrBadInput.Error(), "", nil) // too deep for a list of tasks
	check("echo", nestedTo(9_998), "succeeded 1 1 [[[", "", nil)
	check("garble", "", ErrBadInput.Error(), "", nil)
	check("deep", "", `failed 1 1 "the result is nested too deeply"`, `"the result is nested too deeply"`, nil)
	check("nope", "", ErrUnknownKind.Error(), "", nil)
	check("panic", "", `failed 1 1 "panic: secret`, `"panic: secret\ngoroutine`, nil) // and its stack
	check("NaN", "", `failed 1 1 "json: unsupported value`, `"json: unsupported value: NaN"`, nil)
	check("fail", "", `failed 1 1 "secret"`, "secret", nil)
	const failed = `failed 1 1 {"detail":"the task failed"}`
	check("fail", "", failed, "secret", func(error) json.RawMessage { return nil })
	check("fail", "", failed, "secret", func(error) json.RawMessage { panic("x") })
	check("fail", "", failed, "secret", func(error) json.RawMessage { return json.RawMessage(nestedTo(9_999)) })
}

func TestQueueIsOrderedAndBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, err := NewTasks(Config{Kinds: testKinds}).Submit("echo", nil)
		wantEqual(t, "before Start", err, ErrNotAccepting)
		tasks := startTasks(t, Config{Workers: 3, Queue: 4}, "")
		for i := range 6 {
			submit(t, tasks, "second", strconv.Itoa(i))
			synctest.Wait()
		}
		last := submit(t, tasks, "second", "6").ID
		_, err = tasks.Submit("second", nil)
		wantEqual(t, "three run, four of four wait", err, ErrQueueFull)
		tasks.Cancel(last)
		submit(t, tasks, "second", "7") // takes the canceled one's place
		for _, want := range []string{"2 1 0 run, 7 5 4 3 wait", "5 4 3 run, 7 wait", "7 run,  wait", " run,  wait"} {
			wantEqual(t, "tasks", inputsOf(tasks.List(Running, 100))+" run, "+inputsOf(tasks.List(Queued, 100))+" wait", want)
			time.Sleep(time.Second)
			synctest.Wait()
		}
	})
}

// TestConfigDefaults checks which numbers NewTasks refuses, and what a zero Config allows.
func TestConfigDefaults(t *testing.T) {
	for _, c := range []Config{{Workers: -1}, {Workers: 1001}, {Queue: -1}, {Keep: -1}} {
		mustPanic(t, func() { NewTasks(c) })
	}
	defer log.SetOutput(log.Writer())
	log.SetOutput(io.Discard) // slog.Default() writes there
	bubble(t, func(t *testing.T) {
		tasks, accepted := NewTasks(Config{Kinds: testKinds}), 0
		fatalIf(t, tasks.Start(""))
		for err := error(nil); err == nil && accepted < 9999; accepted++ { // counts the refused one, too
			_, err = tasks.Submit("second", nil)
			synctest.Wait()
		}
		fatalIf(t, tasks.Stop(t.Context()))
		kept := len(tasks.List("", 9999))
		wantEqual(t, "accepted, kept", []int{accepted - 1, kept}, []int{max(1, runtime.GOMAXPROCS(0)-1) + 1000, 1000})
	})
}

func TestListIsNewestFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 2, Keep: 4}, "")
		submit(t, tasks, "second", `"long"`)
		synctest.Wait()
		for i := range 102 { // all but the last four are dropped
			wait(t, tasks, submit(t, tasks, []string{"echo", "fail"}[i%2], strconv.Itoa(i)).ID)
		}
		lists := [][]Task{tasks.List("", 100), tasks.List("", 2), tasks.List(Succeeded, 100), tasks.List(Failed, 1)}
		for i, want := range []string{`101 100 99 98 "long"`, "101 100", "100 98", "101"} {
			wantEqual(t, "List", inputsOf(lists[i]), want)
		}
		counts := map[Status]int{Queued: 0, Running: 1, Succeeded: 51, Failed: 51}
		wantEqual(t, "Counts, including dropped tasks", tasks.Counts(), counts)
		wantEqual(t, "the memory for dropped tasks is freed", len(tasks.created) <= 10, true)
	})
}

func TestOldIDsAreGone(t *testing.T) {
	tasks := startTasks(t, Config{Keep: 1}, "")
	run := strings.TrimSuffix(submit(t, tasks, "echo", "").ID, "-1")
	for range 99 {
		wait(t, tasks, submit(t, tasks, "echo", "").ID)
	}
	for id, want := range map[string]error{
		run + "-100": nil, run + "-1": ErrGone, run + "-99": ErrGone,
		"aaaaaaaa-999999999999999999": ErrGone, // the highest id of another run
		run + "-101":                  ErrNotFound, run + "-0": ErrNotFound, run + "-99999999999999999999": ErrNotFound,
		"aaaaaaaa-1x": ErrNotFound, "AAAAAAAA-1": ErrNotFound, "": ErrNotFound,
	} {
		_, got := tasks.Get(id)
		_, waited := tasks.Wait(t.Context(), id)
		_, canceled := tasks.Cancel(id)
		wantEqual(t, "Get and Wait of "+id, []error{got, waited}, []error{want, want})
		wantEqual(t, "Cancel of "+id, canceled, cmp.Or(want, ErrFinished))
	}
}

// TestCancelTakesEffectAtOnce cancels a running and a queued task, whatever Run does next.
func TestCancelTakesEffectAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks := startTasks(t, Config{}, "")
		running, queued := submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
		synctest.Wait()
		for _, id := range []string{running, queued, queued} { // canceling again is not an error
			task, err := tasks.Cancel(id)
			fatalIf(t, err)
			wantEqual(t, "FinishedAt", task.FinishedAt, time.Now().UTC())
		}
		want := fmt.Sprintf("canceled 0 0 %[1]s, canceled 1 0.5 %[1]s", errorText(ErrCanceled))
		wantEqual(t, "the tasks", statesOf(tasks.List("", 9)...), want)
		time.Sleep(time.Hour)
		wantEqual(t, "the cause that Run saw", lastCause.Load(), ErrCanceled.Error())
		wantEqual(t, "the tasks after an hour", statesOf(tasks.List("", 9)...), want)
		wantEqual(t, "Counts", tasks.Counts(), map[Status]int{Canceled: 2, Queued: 0, Running: 0})
	})
}

// TestStopWaitsThenCutsOff checks a running task, R, and a queued one, Q, which a journal keeps for the next start.
func TestStopWaitsThenCutsOff(t *testing.T) {
	check := func(journal string, within time.Duration, want, said string, cancel error) { // Cancel's error for Q
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Log: log}, journal)
			r, q := submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
			synctest.Wait()
			lastCause.Store("")
			stopped := make(chan error, 1)
			go func() { stopped <- stopWithin(tasks, within) }()
			synctest.Wait()
			_, err := tasks.Submit("second", nil)
			wantEqual(t, "Submit while Stop waits", err, ErrNotAccepting)
			wantEqual(t, "Stop", <-stopped, nil)
			wantEqual(t, "R and Q", statesOf(wait(t, tasks, r), wait(t, tasks, q)), want)
			wantEqual(t, "running tasks", tasks.Counts()[Running], 0)
			_, err = tasks.Cancel(q)
			wantEqual(t, "Cancel", err, cancel)
			again, last, cutOff := stopWithin(tasks, 40*time.Second), tasks.Stop(t.Context()), within < time.Second
			wantEqual(t, "the second Stop runs out of time", errors.Is(again, context.DeadlineExceeded), cutOff)
			wantEqual(t, "the third Stop", last, nil)
			wantEqual(t, "the cause that R saw", lastCause.Load() == ErrStopped.Error(), cutOff)
			wantEqual(t, "R and Q at the end", statesOf(wait(t, tasks, r), wait(t, tasks, q)), want)
			text := strings.NewReplacer(r, "R", q, "Q", `"`, "").Replace(lines.String())
			wantCount(t, text, fmt.Sprint("running=1 queued=1 queue_kept=", journal != ""), 1)
			wantCount(t, text, "level="+said, 1)
			wantCount(t, text, " ids=", strings.Count(said, " ids="))
			wantCount(t, text, "level=ERROR", 0)
			if journal != "" && tasks.journal.Close() == nil {
				t.Error("the journal was still open")
			}
		})
	}
	const done, left = "succeeded 1 1 null", "INFO msg=tasks are left in the journal for the next start ids="
	canceled := fmt.Sprintf("canceled 1 0.5 %[1]s, canceled 0 0 %[1]s", errorText(ErrStopped))
	check("", time.Minute, done+", "+done, "INFO msg=task succeeded id=Q", ErrFinished)
	check("", time.Millisecond, canceled, "WARN msg=tasks were canceled by the shutdown ids=[R Q]", nil)
	check(journalOf(t), time.Minute, done+", queued 0 0", left+"[Q]", ErrStopped)
	check(journalOf(t), time.Millisecond, "queued 0 0, queued 0 0", left+"[R Q]", ErrStopped)
}

// journalOf returns the path of a journal with these lines, if any.
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

const (
	lineQueued    = `{"id":"aaaaaaaa-1","kind":"echo","status":"queued","attempt":0,"progress":0,"input":1,"created_at":"2026-01-01T00:00:00Z"}`
	lineSucceeded = `{"id":"aaaaaaaa-1","kind":"echo","status":"succeeded","attempt":1,"progress":1,"input":1,"result":1,"created_at":"2026-01-01T00:00:00Z"}`
)

// afterCrash returns a copy of a journal: what its tasks do from now on is not in it.
func afterCrash(t *testing.T, path string) string { return journalOf(t, read(t, path)) }

func TestJournalKeepsAcknowledgedTasks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		path := journalOf(t)
		tasks := startTasks(t, Config{}, path)
		wait(t, tasks, submit(t, tasks, "echo", strconv.Quote(strings.Repeat("x", 100_000))).ID)
		wait(t, tasks, submit(t, tasks, "fail", nestedTo(9_000)).ID)
		for n := range 9 { // all at the same time, so the ids decide the order
			submit(t, tasks, "second", strconv.Itoa(n))
		}
		tasks.Cancel(submit(t, tasks, "second", "9").ID) // finishes before the others
		for n := range 2 {
			time.Sleep(1500 * time.Millisecond)
			path = afterCrash(t, path)
			before := tasks
			tasks = startTasks(t, Config{}, path)
			wantEqual(t, "the tasks after a start", inputsOf(tasks.List("", 100)), inputsOf(before.List("", 100)))
			for _, end := range []Status{Succeeded, Failed, Canceled} {
				wantEqual(t, "the finished tasks after a start", tasks.List(end, 100), before.List(end, 100))
			}
			submit(t, tasks, "echo", strconv.Itoa(100+n))
		}
		time.Sleep(time.Hour)
		wantEqual(t, "Stop", stopWithin(tasks, 0), nil)
		tasks = startTasks(t, Config{Keep: 11}, path) // without the three that finished first
		wantEqual(t, "what is kept", inputsOf(tasks.List(Succeeded, 100)), "101 100 8 7 6 5 4 3 2 1 0")
		wantEqual(t, "Counts", tasks.Counts()[Succeeded], 11)
		wantCount(t, read(t, path), "\n", 11)
	})
}

// TestJournalCountsAttempts starts two tasks after crashes, after a graceful shutdown, and after one that is killed.
func TestJournalCountsAttempts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		path := journalOf(t)
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 2, Log: log}, path)
		submit(t, tasks, "second", "")
		submit(t, tasks, "second", "")
		for n, want := range []string{
			"queued 1 0, running 2 0.5", // newest first; both were running before the crash
			"queued 0 0, running 1 0.5", // after a graceful shutdown
			"queued 0 0, running 2 0.5",
			"queued 0 0, running 1 0.5", // after one that was killed: docker kills ten seconds after SIGTERM
			"queued 0 0, running 2 0.5",
			"queued 0 0, running 3 0.5",
			"running 1 0.5, failed 3 0 " + string(errorText(ErrCrashed)),
		} {
			synctest.Wait()
			if n == 1 {
				wantEqual(t, "Stop", stopWithin(tasks, 0), nil)
			} else if n == 3 {
				go stopWithin(tasks, time.Minute)
				synctest.Wait()
			}
			path = afterCrash(t, path)
			tasks = startTasks(t, Config{Log: log}, path)
			synctest.Wait()
			wantEqual(t, fmt.Sprint("start ", n), statesOf(tasks.List("", 2)...), want)
			for _, task := range tasks.List(Queued, 1) {
				wantEqual(t, "StartedAt of a queued task", task.StartedAt, time.Time{})
			}
		}
		wantCount(t, lines.String(), `level=ERROR msg="task failed"`, 1)
		wantCount(t, lines.String(), "cause="+strconv.Quote(ErrCrashed.Error()), 1)
	})
}

// TestJournalIsReadAfterACrashOrAChange expects that a line counts only with its line feed: before, nobody was told.
func TestJournalIsReadAfterACrashOrAChange(t *testing.T) {
	gone := "failed 1 0 " + string(errorText(ErrKindGone))
	const done, torn, again = "succeeded 1 1 1", `level=WARN msg="dropped an incomplete line`, `tasks=1 requeued=1`
	for text, want := range map[string][2]string{ // the task, the log
		"": {"", "tasks=0"}, lineQueued[:6]: {"", torn}, lineQueued[:8]: {"", torn}, lineQueued: {"", torn},
		lineQueued + "\n{": {done, torn}, lineQueued + "\n" + `{"id":"aaaaa`: {done, torn},
		lineQueued + "\n" + lineSucceeded:                       {done, again},
		lineQueued + "\n" + strings.Repeat("\x00", 99):          {done, torn},
		lineQueued + "\n" + `{"name": "x"}`:                     {done, torn},
		strings.Replace(lineQueued, "echo", "refuse", 1) + "\n": {done, again}, // its Check would refuse it
		strings.Replace(lineQueued, "echo", "nope", 1) + "\n":   {gone, again},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Log: log}, journalOf(t, text))
			synctest.Wait()
			wantEqual(t, "the tasks of "+text, statesOf(tasks.List("", 9)...), want[0])
			wantCount(t, lines.String(), want[1], 1)
		})
	}
}

func TestUnusableJournalIsLeftUnchanged(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(lineQueued, old, new, 1) }
	blocked := journalOf(t, lineQueued, "")
	fatalIf(t, os.MkdirAll(blocked+".new/full", 0o700)) // the new file's name is taken
	for path, want := range map[string]string{
		journalOf(t, "{", lineQueued, ""): ":1: ", journalOf(t, lineQueued, "", lineSucceeded, ""): ":2: ",
		journalOf(t, replace("aaaaaaaa-1", ""), ""): ":1: ", journalOf(t, replace("input", "inpuu"), ""): ":1: ",
		journalOf(t, lineQueued, replace("queued", "paused")+"\n"): ":2: ", // an unknown status
		journalOf(t, lineQueued+lineQueued, ""):                    ":1: ", // two values in one line
		journalOf(t, lineSucceeded, lineQueued, ""):                ":2: ", // a finished task is queued again
		journalOf(t, `{"id":"customer-1","name":"x"}`):             ":1: ", // some other file, named by mistake
		journalOf(t, `{"ID": "customer-1", "name": "x`):            ":1: ", journalOf(t, "\x00\x00"): ":1: ",
		journalOf(t) + "/tasks.jsonl": "open the journal: ", blocked: "compact the journal: ",
		t.TempDir(): "is not a regular file",
	} {
		before, _ := os.ReadFile(path)
		err := NewTasks(Config{Log: discard}).Start(path)
		after, _ := os.ReadFile(path)
		if err == nil || !strings.Contains(err.Error(), want) || !bytes.Equal(before, after) {
			t.Errorf("%q: got %v, want %s; now the file is %q", brief(string(before)), err, want, brief(string(after)))
		}
	}
}

func TestJournalMustNotBeAPipe(t *testing.T) {
	pipe := journalOf(t)
	if err := exec.Command("mkfifo", pipe).Run(); err != nil || runtime.GOOS == "windows" { // Git Bash's only pretends
		t.Skip("no pipes with a path here: ", err)
	}
	f, err := os.OpenFile(pipe, os.O_RDWR, 0) // so that a reader wouldn't block forever
	fatalIf(t, err)
	defer f.Close()
	fmt.Fprintln(f, "something")
	err = NewTasks(Config{Log: discard}).Start(pipe)
	wantEqual(t, "Start", fmt.Sprint(err), "the journal "+pipe+" is not a regular file")
}

// TestJournalIsPrivate checks that others can't read the journal, neither in place nor through a link at its new name.
func TestJournalIsPrivate(t *testing.T) {
	path, link, victim := journalOf(t), journalOf(t), journalOf(t, "mine") // path does not exist yet, as on a new volume
	if err := errors.Join(os.Symlink(path, link), os.Symlink(victim, path+".new")); err != nil {
		t.Skip(err)
	}
	tasks := startTasks(t, Config{}, link)
	wait(t, tasks, submit(t, tasks, "echo", "").ID)
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Fatalf("the journal is %v, %v, want a file with mode 0600", info, err)
	}
	wantCount(t, read(t, path), "\n", 3) // and not in a file that replaced the link
	wantEqual(t, "the other file", read(t, victim), "mine")
}

// TestFailedJournalWriteStopsNewTasks fills the disk up in mid-line. Cancel notices, then a task that finishes.
func TestFailedJournalWriteStopsNewTasks(t *testing.T) {
	const said = `level=ERROR msg="no more tasks are accepted or started"`
	bubble(t, func(t *testing.T) {
		path := journalOf(t)
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 2, Log: log}, path)
		submit(t, tasks, "second", "")
		submit(t, tasks, "second", "")
		queued := submit(t, tasks, "second", "").ID
		synctest.Wait()
		fmt.Fprint(tasks.journal, `{"id":"half`)
		tasks.journal.Close()
		full := read(t, path)
		_, canceled := tasks.Cancel(queued)
		_, submitted := tasks.Submit("echo", nil)
		wantEqual(t, "Submit's error after Cancel's", submitted, canceled)
		if !errors.Is(canceled, ErrNotAccepting) || !errors.Is(canceled, os.ErrClosed) || tasks.Ready() {
			t.Errorf("got %v, ready %v, want %v with its cause, false", canceled, tasks.Ready(), ErrNotAccepting)
		}
		time.Sleep(time.Minute)
		wantEqual(t, "the tasks", statesOf(tasks.List("", 9)...), "queued 0 0, succeeded 1 1 null, succeeded 1 1 null")
		wantCount(t, lines.String(), said, 1)
		wantCount(t, lines.String(), "will run it again", 2)
		wantEqual(t, "Stop returns it", errors.Is(stopWithin(tasks, 0), os.ErrClosed), true)
		wantEqual(t, "the file", read(t, path), full)

		tasks = startTasks(t, Config{Workers: 2, Log: log}, path)
		time.Sleep(time.Minute)
		const again = "succeeded 1 1 null, succeeded 2 1 null, succeeded 2 1 null"
		wantEqual(t, "the tasks after the next start", statesOf(tasks.List("", 9)...), again)
		submit(t, tasks, "second", "")
		synctest.Wait()
		tasks.journal.Close()
		tasks.workers.Wait() // both the one that ran the task and the idle one
		wantEqual(t, "ready", tasks.Ready(), false)
		wantCount(t, lines.String(), said, 2)
	})
}

// TestFlood races submissions, cancels, lists and waits: every task must finish exactly once.
func TestFlood(t *testing.T) {
	tasks := startTasks(t, Config{Workers: 2, Queue: 10, Keep: 10}, journalOf(t))
	var clients sync.WaitGroup
	var accepted atomic.Int64
	for range 8 {
		clients.Go(func() {
			for n := range 100 {
				task, err := tasks.Submit("echo", nil)
				if err != nil {
					continue // the queue is full
				}
				accepted.Add(1)
				if tasks.List("", 9); n%2 == 0 {
					tasks.Cancel(task.ID)
				} else if task, err = tasks.Wait(t.Context(), task.ID); err == nil && !task.Status.Finished() {
					t.Errorf("after Wait: %+v", task)
				}
			}
		})
	}
	clients.Wait()
	wantEqual(t, "Stop", tasks.Stop(t.Context()), nil)
	counts := tasks.Counts()
	wantEqual(t, "finished", int64(counts[Succeeded]+counts[Canceled]), accepted.Load())
	wantEqual(t, "at most 10 are kept", len(tasks.List("", 99)) <= 10, true)
}

// FuzzJournal expects an error and an unchanged file, or two starts that agree and lose no complete line.
func FuzzJournal(f *testing.F) {
	f.Add(strings.Replace(lineSucceeded, "-1", "-2", 1) + "\n" + lineQueued + "\n" + lineSucceeded + "\n" + `{"id":"aa`)
	f.Add(strings.Replace(lineQueued, `0,"progress":0,"input":1`, `-9223372036854775808,"progress":-1e308,"input":null`, 1) + "\n")
	f.Fuzz(func(t *testing.T, data string) {
		path := journalOf(t, data)
		var lists [2]string
		for i := range lists { // the second time, on what the first one wrote
			tasks := NewTasks(Config{Keep: 1 << 20, Log: discard})
			if err := tasks.openJournal(path); err != nil { // Start without the workers
				wantEqual(t, fmt.Sprint("the refused file, ", err), read(t, path), data)
				return
			}
			list, err := json.Marshal(tasks.List("", 1<<20))
			fatalIf(t, errors.Join(err, tasks.journal.Close()))
			lists[i] = string(list)
		}
		wantEqual(t, "the tasks from its own journal", lists[1], lists[0])
		for line := range strings.Lines(data[:strings.LastIndexByte(data, '\n')+1]) {
			var task Task
			fatalIf(t, json.Unmarshal([]byte(line), &task))
			wantEqual(t, "the list has "+brief(line), strings.Contains(lists[0], `{"id":"`+task.ID+`"`), true)
		}
	})
}

// BenchmarkStart reads a journal of a million lines, three per task.
func BenchmarkStart(b *testing.B) {
	var text strings.Builder
	lines := []string{lineQueued, strings.Replace(lineQueued, "queued", "running", 1), lineSucceeded}
	for n := range 999_999 {
		fmt.Fprintln(&text, strings.Replace(lines[n%3], "-1", fmt.Sprintf("-%d", n/3+1), 1))
	}
	for b.Loop() {
		b.StopTimer()
		path, tasks := journalOf(b, text.String()), NewTasks(Config{Log: discard})
		b.StartTimer()
		fatalIf(b, tasks.Start(path))
		fatalIf(b, tasks.Stop(b.Context()))
	}
}

// ---- lifecycle.go

func ExampleLifecycle() {
	say := func(what string) func(context.Context) error {
		return func(context.Context) error { fmt.Println(what); return nil }
	}
	l := &Lifecycle{Log: discard, Grace: time.Second}
	l.Add(Hook{Name: "app", Start: say("load the model"), Stop: say("save the log")})
	l.Add(Hook{Name: "jobs", Start: say("start the jobs"), Drain: say("finish the jobs")})

	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second) // in case no request is answered
	go http.Get("http://" + ln.Addr().String())                           // the client
	fmt.Println(l.Run(ctx, ln, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		fmt.Println("answer a request")
		stop() // like Ctrl-C
	})}))
	// Output:
	// load the model
	// start the jobs
	// answer a request
	// finish the jobs
	// save the log
	// <nil>
}

// A stage is a server that runs in a bubble, with an in-memory network, and its client.
type stage struct {
	conns       chan net.Conn
	closed      context.Context
	close, stop context.CancelFunc // close the listener; stop as a signal does
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
	ctx, stop := context.WithCancel(t.Context())
	s.stop = stop
	go func() { s.ended <- l.Run(ctx, s, srv); close(s.ended) }()
	t.Cleanup(func() { <-s.ended }) // the test's context is canceled, which works like a signal
	return s
}

// get returns the response's status, with ", close" if the connection is to be closed, or the error.
func (s *stage) get() string {
	resp, err := s.client.Get("http://server/")
	if err != nil {
		return errors.Unwrap(err).Error()
	}
	resp.Body.Close()
	if resp.Close {
		return resp.Status + ", close"
	}
	return resp.Status
}

// TestLifecycleRunsItsStepsInOrder uses steps that take a second, or until their context is done, and note how much
// time they have. The signal is early, while b starts, or late.
func TestLifecycleRunsItsStepsInOrder(t *testing.T) {
	check := func(signal time.Duration, failing, wantErr, want string) {
		bubble(t, func(t *testing.T) {
			l, diary := &Lifecycle{Log: discard, Grace: 20 * time.Second}, []string{}
			step := func(name string) func(context.Context) error {
				return func(ctx context.Context) error {
					entry := name
					if l.Ready() {
						entry += " (ready)"
					}
					if end, ok := ctx.Deadline(); ok {
						entry += fmt.Sprintf(" in %v", time.Until(end))
					}
					diary = append(diary, entry)
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
						diary = append(diary, "interrupted")
					}
					if strings.Contains(failing, name) {
						return io.EOF
					}
					return nil
				}
			}
			l.Add(Hook{"a", step("start a"), step("drain a"), step("stop a")})
			l.Add(Hook{"b", step("start b"), step("drain b"), step("stop b")})
			l.Add(Hook{Name: "c", Start: step("start c")})
			s := newStage(t, l, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				step("request")(t.Context())
			})})
			go s.get()
			time.Sleep(signal)
			synctest.Wait()
			s.stop()
			wantEqual(t, "the error", fmt.Sprint(<-s.ended), wantErr)
			wantEqual(t, "the steps", strings.Join(diary, ", "), want)
			wantEqual(t, "the listener is closed", s.closed.Err() != nil, true)
		})
	}
	const early, late = 1500 * time.Millisecond, time.Minute
	const all = "start a, start b, start c, request (ready), drain b in 10s, drain a in 9s, stop b in 5s, stop a in 4s"
	check(late, "", "<nil>", all)
	check(late, "drain b, drain a, stop b, stop a", "drain b: EOF\ndrain a: EOF\nstop b: EOF\nstop a: EOF", all)
	check(late, "start b, stop a", "start b: EOF\nstop a: EOF", "start a, start b, stop a in 5s")
	check(early, "start b", "<nil>", "start a, start b, interrupted, stop a in 5s")
	check(early, "", "<nil>", "start a, start b, interrupted, stop b in 5s, stop a in 4s")
}

// TestShutdownWaitsForClients checks that the server keeps answering until then, and asks its clients to leave.
func TestShutdownWaitsForClients(t *testing.T) {
	const s, hour = time.Second, time.Hour
	for name, tt := range map[string]struct {
		linger, drain, signal time.Duration // signal: time from the request to the signal
		request               time.Duration // how long the request takes; -1: it panics
		more                  bool          // until the end, a request comes every half second
		lasts                 time.Duration // the shutdown
		reply                 string
		err                   error
	}{
		"nobody came lately":                              {2 * s, 0, 2 * s, 0, false, 0, "200 OK", nil},
		"a handler has panicked":                          {2 * s, 0, 2 * s, -1, false, 0, "EOF", nil},
		"somebody came just now":                          {2 * s, 0, 1 * s, 0, false, 2 * s, "200 OK", nil},
		"somebody came, and the drain takes a while":      {2 * s, 4 * s, 1 * s, 0, false, 6 * s, "200 OK", nil},
		"clients keep coming":                             {2 * s, 4 * s, 1 * s, 0, true, 8 * s, "200 OK", nil},
		"clients keep coming, without a linger":           {0, 0, 1 * s, 0, false, 0, "200 OK", nil},
		"a linger of more than half of what is left":      {hour, 4 * s, 1 * s, 0, true, 17 * s, "200 OK", nil},
		"a request in flight that ends within the linger": {2 * s, 0, 0, 1 * s, false, 4 * s, "200 OK", nil},
		"a request in flight that ends within the grace":  {2 * s, 0, 0, 15 * s, false, 15 * s, "200 OK, close", nil},
		"a request in flight that takes longer":           {2 * s, 0, 0, hour, false, 20 * s, "EOF", context.DeadlineExceeded},
	} {
		bubble(t, func(t *testing.T) {
			l := &Lifecycle{Log: discard, Grace: 20 * time.Second, Linger: tt.linger}
			l.Add(Hook{Drain: func(context.Context) error { time.Sleep(tt.drain); return nil }})
			s := newStage(t, l, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				time.Sleep(tt.request)
				if tt.request < 0 {
					panic(http.ErrAbortHandler)
				}
			})})
			reply := make(chan string, 1)
			go func() { reply <- s.get() }()
			synctest.Wait()
			time.Sleep(tt.signal)
			begin := time.Now()
			s.stop()
			for tt.more && time.Since(begin) < tt.lasts { // first on the keep-alive connection, then on new ones
				synctest.Wait()
				wantEqual(t, name+": a request after the signal", s.get(), "200 OK, close")
				time.Sleep(500 * time.Millisecond)
			}
			err, took, got := <-s.ended, time.Since(begin), <-reply
			// Shutdown checks every half second whether the last request has ended.
			if got != tt.reply || took < tt.lasts || took > tt.lasts+time.Second || !errors.Is(err, tt.err) {
				t.Errorf("%s: got %s after %v: %v; want %s, %v: %v", name, got, took, err, tt.reply, tt.lasts, tt.err)
			}
			time.Sleep(tt.request) // until the handler that was cut off returns
		})
	}
}

// TestShutdownWaitsForSilentConnections expects an answer to each that sends its request before it is five seconds old.
func TestShutdownWaitsForSilentConnections(t *testing.T) {
	check := func(request string, after, lasts time.Duration, want string) { // both times are from the signal
		bubble(t, func(t *testing.T) {
			states := make(chan http.ConnState, 9)
			s := newStage(t, &Lifecycle{Log: discard, Grace: 20 * time.Second}, &http.Server{
				Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
				ConnState: func(_ net.Conn, state http.ConnState) { states <- state },
			})
			conn, err := s.Dial(t.Context(), "", "")
			fatalIf(t, err)
			defer conn.Close()
			time.Sleep(time.Second)
			begin := time.Now()
			s.stop()
			time.Sleep(after)
			go io.WriteString(conn, request)
			reply, _ := io.ReadAll(conn)
			err = <-s.ended
			took := time.Since(begin)
			if !strings.HasPrefix(string(reply), want) || took < lasts || took > lasts+time.Second || err != nil {
				t.Errorf("%q: got %q after %v: %v; want %q after %v", request, reply, took, err, want, lasts)
			}
			wantEqual(t, "the first state that the server's own hook saw", <-states, http.StateNew)
		})
	}
	const late = 3900 * time.Millisecond
	check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 0, 50*time.Millisecond, "HTTP/1.1 200") // held while the listener closes
	check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2*time.Second, 2*time.Second, "HTTP/1.1 200")
	check("GET / HTTP/1.1\r\nHost: x\r\n\r\n", late, late, "HTTP/1.1 200")
	check("GET / HTTP/1.1\r\n", 0, 4*time.Second, "") // half a header is silence, too
}

// TestLifecycleReportsAListenerThatFailsInTheShutdown closes it before Run does.
func TestLifecycleReportsAListenerThatFailsInTheShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := &Lifecycle{Log: discard, Grace: time.Minute, Linger: time.Minute} // which nobody has come for
		var s *stage
		l.Add(Hook{Drain: func(context.Context) error { s.Close(); synctest.Wait(); return nil }})
		s = newStage(t, l, &http.Server{})
		synctest.Wait()
		begin := time.Now()
		s.stop()
		wantEqual(t, "the listener's error is Run's", errors.Is(<-s.ended, net.ErrClosed), true)
		wantEqual(t, "the shutdown lasted a second", time.Since(begin) > time.Second, false)
	})
}

// TestLifecycleEndsWhenListenerFails expects the usual order and every error, of a zero Lifecycle.
func TestLifecycleEndsWhenListenerFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logBuffer
		defer log.SetOutput(log.Writer())
		log.SetOutput(&lines) // slog.Default() writes there
		l := &Lifecycle{}
		l.Add(Hook{Stop: func(context.Context) error { return io.EOF }})
		s := newStage(t, l, &http.Server{})
		wantEqual(t, "the status of http.DefaultServeMux", s.get(), "404 Not Found")
		s.Close()
		err := <-s.ended
		wantEqual(t, "both errors are Run's", errors.Is(err, net.ErrClosed) && errors.Is(err, io.EOF), true)
		wantMatch(t, "the log", lines.String(), `cause="use of closed`)
		wantEqual(t, "the log says stopped", strings.Contains(lines.String(), "INFO stopped"), false)
	})
}

// ---- main.go

func init() { child = main }

var testConfig = config{workers: 1, queue: 10, keep: 10}

// newTestApp returns the app and its handler. Its Start hooks have run; its Stop hooks run at the end of the test.
func newTestApp(t testing.TB, log *slog.Logger) (*app, http.Handler) {
	return newTestAppWith(t, testConfig, log)
}

func newTestAppWith(t testing.TB, c config, log *slog.Logger) (*app, http.Handler) {
	t.Helper()
	a := newApp(c, log)
	started, err := a.lifecycle.start(t.Context())
	fatalIf(t, err)
	a.lifecycle.ready.Store(true)
	t.Cleanup(func() {
		stopWithin(a.tasks, 0) // with no time to drain
		for _, h := range slices.Backward(started) {
			wantEqual(t, "the error of the Stop hook", call(context.Background(), "stop", h.Name, h.Stop), nil)
		}
	})
	return a, a.handler()
}

// fileFlags gives every flag that names a file its value, so that no test opens a file of yours by default.
var fileFlags = []string{"-journal="}

var roomy = config{workers: 1, queue: 100, keep: 100, grace: 20 * time.Second, linger: 2 * time.Second}

// appStage runs the app's own server in a bubble.
func appStage(t *testing.T, c config, log *slog.Logger) (*app, *stage) {
	a := newApp(c, log)
	s := newStage(t, a.lifecycle, a.server())
	synctest.Wait()
	return a, s
}

// remote is a handler that forwards to a server. Without a response it answers a 502 that says why.
func remote(host string, transport http.RoundTripper) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: host}) },
		Transport: transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		},
	}
}

// taskOf returns the task in a response. Any other status ends the test and shows the response.
func taskOf(t testing.TB, status int, w *httptest.ResponseRecorder) (task Task) {
	t.Helper()
	if err := json.Unmarshal(w.Body.Bytes(), &task); err != nil || task.ID == "" || w.Code != status {
		t.Fatalf("got %d %s, want %d and a task", w.Code, brief(w.Body.String()), status)
	}
	return task
}

// post submits a task to a handler.
func post(h http.Handler, body string, header ...string) *httptest.ResponseRecorder {
	return do(h, "POST", "/tasks", body, append(header, "Content-Type", "application/json")...)
}

// wantRoutes sends requests, each a method, a path and a body. It wants the status, and the body, or a redirect's
// Location, or a problem's detail. No cache may store an error, a task or a server's health.
func wantRoutes(t *testing.T, requests [][2]string) {
	t.Helper()
	_, h := newTestApp(t, discard)
	for _, r := range requests {
		part := append(strings.SplitN(r[0], " ", 3), "")
		w := do(h, part[0], part[1], part[2], "Content-Type", "application/json", "Sec-Fetch-Site", "same-origin")
		got := cmp.Or(w.Header().Get("Location"), strings.TrimSpace(w.Body.String()))
		if w.Code >= 400 {
			got = problemOf(t, w).Detail
		}
		got = fmt.Sprint(w.Code, " ", got)
		changes := w.Code >= 400 || strings.HasPrefix(part[1], "/tasks") || strings.HasSuffix(part[1], "z")
		if cache := w.Header().Get("Cache-Control"); got != r[1] || (cache == "no-store") != changes {
			t.Errorf("%s: got %s with Cache-Control %q, want %s", r[0], brief(got), cache, r[1])
		}
	}
}

func TestAppRoutes(t *testing.T) {
	wantRoutes(t, [][2]string{
		{`GET /`, `307 /docs`},
		{`GET /tasks`, `200 []`},
		{`GET /tasks?status=nope`, `422 query.status must be one of queued, running, succeeded, failed, canceled`},
		{`GET /tasks?status=%zz`, `400 malformed query`},
		{`GET /tasks/nope`, `404 no such task`},
		{`DELETE /tasks/nope`, `404 no such task`},
		{`PUT /tasks`, `405 this path allows GET, HEAD, POST`},
		{`POST /tasks {"kind":"sleep","priority":1}`, `422 body.priority is not a known field`},
		{`GET /healthz`, `200 {"status":"ok"}`},
		{`GET /readyz`, `200 {"status":"ok"}`},
		{`GET /nope`, `404 no route matches this path`},
	})
	_, h := newTestApp(t, discard)
	foreign := problemOf(t, do(h, "POST", "/tasks", "", "Sec-Fetch-Site", "cross-site"))
	wantEqual(t, "a cross-origin request", foreign.Status, 403)
	const summaries = `"summary":"Home".*"summary":"Docs".*"example":"{\\"kind\\": \\"sleep\\"`
	_, routes, _ := strings.Cut(do(h, "GET", "/docs", "").Body.String(), `id="routes">`)
	wantMatch(t, "the routes at /docs", routes, summaries)
}

// TestTasksOverHTTP makes the lecture's comparison: answer at once and poll, or wait.
func TestTasksOverHTTP(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, h := newTestApp(t, discard)
		begin := time.Now()
		check := func(code int, want string, w *httptest.ResponseRecorder) (target string) {
			t.Helper()
			task, after := taskOf(t, code, w), time.Since(begin).Round(time.Millisecond)
			got := fmt.Sprint(task.Status, " ", task.Progress, " after ", after)
			for _, name := range []string{"Retry-After", "Preference-Applied"} {
				got += strings.TrimRight(", "+w.Header().Get(name), ", ")
			}
			wantEqual(t, "the response", got, want)
			return "/tasks/" + task.ID
		}
		w := post(h, `{"kind":"sleep"}`)
		target := check(202, "queued 0 after 0s, 1", w)
		wantEqual(t, "the Location", w.Header().Get("Location"), target)
		time.Sleep(1510 * time.Millisecond)
		check(200, "running 0.5 after 1.51s, 1", do(h, "GET", target, ""))
		check(200, "succeeded 1 after 3s, wait=5", do(h, "GET", target, "", "Prefer", "wait=5"))
		check(200, "succeeded 1 after 6s, wait=5", post(h, `{"kind":"sleep"}`, "Prefer", "wait=5"))
		target = check(202, "running 0.33 after 7s, 1, wait=1", post(h, `{"kind":"sleep"}`, "Prefer", "wait=1"))
		w = do(h, "DELETE", target, "")
		check(200, "canceled 0.33 after 7s", w)
		const problem = `{"type":"about:blank","title":"Conflict","status":409,"detail":"the task was canceled"}`
		wantEqual(t, "the error of the canceled task", string(taskOf(t, 200, w).Error), problem)
		list := do(h, "GET", "/tasks?status=canceled", "").Body.String()
		wantEqual(t, "the canceled tasks", list, "["+strings.TrimSpace(w.Body.String())+"]\n")
	})
}

// TestTemporaryRefusalHasRetryAfter checks a full queue and a server that is not ready.
func TestTemporaryRefusalHasRetryAfter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		check := func(want string, w *httptest.ResponseRecorder) {
			t.Helper()
			wantEqual(t, "the response", fmt.Sprint(w.Code, " ", problemOf(t, w).Detail), want)
			wantEqual(t, "Retry-After", w.Header().Get("Retry-After"), "1")
		}
		for range 11 { // one is running, and ten are waiting
			submit(t, a.tasks, "sleep", "")
			synctest.Wait()
		}
		check("503 the queue is full", post(h, `{"kind":"sleep"}`))
		const notReady = "503 not ready: stopping, or the journal can't be written"
		a.lifecycle.ready.Store(false)
		check(notReady, do(h, "GET", "/readyz", ""))
		a.lifecycle.ready.Store(true)
		stopWithin(a.tasks, 0)
		check(notReady, do(h, "GET", "/readyz", ""))
		wantEqual(t, "the status of /healthz", do(h, "GET", "/healthz", "").Code, 200)
	})
}

func TestPreferWait(t *testing.T) {
	for in, want := range map[string]int{
		"wait=5": 5, " WAIT = 5 ": 5, "wait=5;x=y": 5, "respond-async, wait=5": 5, "respond-async|wait=5": 5,
		"wait=5, wait=7": 5, "wait=x, wait=5": 5, `x="a, b", wait=5`: 5,
		"wait=0": 0, "wait=30": 30, "wait=31": 30, "wait=99999999999999999999": 30,
		"": -1, "wait=": -1, "wait=x": -1, "wait=-5": -1, "wait=5s": -1, `wait="5"`: -1, "await=5": -1, "wait=5 6": -1,
	} {
		got, ok := preferWait(http.Header{"Prefer": strings.Split(in, "|")}) // the field lines
		if ok != (want >= 0) || got != max(want, 0) {
			t.Errorf("Prefer: %s: got %d, %v; want %d", in, got, ok, want)
		}
	}
}

// TestTaskErrorsAreProblems checks an error as a request's and as a task's. Only the log gets the cause.
func TestTaskErrorsAreProblems(t *testing.T) {
	a, secret := &app{}, errors.New("secret")
	for want, err := range map[string]error{ // the problem, and Retry-After
		"404 no such task, ":                                          ErrNotFound,
		"410 the task is no longer available, ":                       ErrGone,
		"409 the task has already finished, ":                         ErrFinished,
		"409 the task was canceled, ":                                 ErrCanceled,
		"503 the queue is full, 1":                                    ErrQueueFull,
		"503 no tasks are being accepted, 1":                          fmt.Errorf("%w: %w", ErrNotAccepting, secret),
		"503 the server stopped before the task finished, 1":          ErrStopped,
		"500 the server crashed three times while running the task, ": ErrCrashed,
		"500 the server no longer has this kind of task, ":            fmt.Errorf("%w: %w", ErrKindGone, secret),
		"422 body.input must be JSON that is not nested too deeply, ": ErrBadInput,
		"502 the next one is busy, ":                                  Errorf(502, "the next one is busy").Because(ErrQueueFull),
		"404 아이템 <5>, ":                                               Errorf(404, "아이템 <5>").Because(secret),
		"500 , ":                                                      secret,
	} {
		var problem Problem
		json.Unmarshal(a.taskProblem(err), &problem)
		mapped := a.taskError(err)
		retry := do(Observe(discard, fail(mapped)), "GET", "/", "").Header().Get("Retry-After")
		wantEqual(t, err.Error(), fmt.Sprintf("%d %s, %s", problem.Status, problem.Detail, retry), want)
		wantEqual(t, err.Error()+": the log has the cause", errors.Is(mapped, secret), errors.Is(err, secret))
	}
	wantMatch(t, "an unknown kind", a.taskError(ErrUnknownKind).Error(), `^422 body\.kind must be one of .+, sleep`)
}

// TestKinds checks what Check returns, what Run returns, and the last progress. An input that Check rejects also fails
// in Run, where an older version's journal can bring it.
func TestKinds(t *testing.T) {
	check := func(kind, input, wantCheck, wantRun string, last float64) { // the last progress
		bubble(t, func(t *testing.T) {
			defer func() { wantEqual(t, "a panic of "+kind, recover(), nil) }() // here, it would end all tests
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if wantRun == ErrCanceled.Error() {
				cancel(ErrCanceled)
			}
			outcome := func(v any, err error) string {
				encoded, _ := encode(v)
				return fmt.Sprint(cmp.Or[any](err, string(encoded)))
			}
			k, data, progress := (&app{}).kinds()[kind], json.RawMessage(input), 0.0
			checked := outcome(k.Check(data))
			ran := outcome(k.Run(ctx, Task{Input: data}, func(p float64) { progress = p }))
			wantEqual(t, kind+" "+input, []any{checked, ran, progress}, []any{wantCheck, wantRun, last})
		})
	}
	const badTime = "422 body.input.wait_time must be between 1 and 10"
	const badN = "422 body.input.n must be between 2 and 50000000"
	check("sleep", ``, `{"wait_time":3}`, `"task done after 3"`, 1)
	check("sleep", `{"wait_time":1}`, `{"wait_time":1}`, `"task done after 1"`, 1)
	check("sleep", `{"wait_time":10}`, `{"wait_time":10}`, "the task was canceled", 0)
	check("sleep", `{"wait_time":0}`, badTime, badTime, 0)
	check("sleep", `{"wait_time":11}`, badTime, badTime, 0)
	check("primes", `{"n":1}`, badN, badN, 0)
	check("primes", `{"n":50000001}`, badN, badN, 0)
	check("primes", `{"n":2}`, `{"n":2}`, `{"primes":1}`, 0)
	check("primes", `{"n":9}`, `{"n":9}`, `{"primes":4}`, 0)
	check("primes", `{"n":100000}`, `{"n":100000}`, `{"primes":9592}`, 0.99328)
	check("primes", `{"n":50000000}`, `{"n":50000000}`, "the task was canceled", 0)
}

// wantRun checks the exit code and the output of a run that fails. Only the last flag of args may have spaces.
func wantRun(t *testing.T, args, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // so that a server that starts by mistake stops
	defer cancel()
	var log logBuffer
	code := run(ctx, slices.Concat([]string{"-addr=localhost:0"}, fileFlags, strings.SplitN(args, " ", 2)), &log)
	wantMatch(t, args, fmt.Sprint(code, " ", log.String()), "^"+want)
}

// startFails matches a run that ends in a Start hook. An earlier hook may have logged something.
const startFails = "1 (.*\n)*.* level=ERROR .*start "

// TestRunSaysWhyItFails checks the line above the usage, or the line in the log.
func TestRunSaysWhyItFails(t *testing.T) {
	ln, err := net.Listen("tcp", "localhost:0")
	fatalIf(t, err)
	defer ln.Close()
	for args, want := range map[string]string{
		"-nope": "flag provided but not defined: -nope", "-addr=": "-addr must not be empty",
		"-workers 0": "-workers must be between 1 and 1000", "-workers 1001": "-workers must be between 1 and 1000",
		"-queue 0": "-queue and -keep must be at least 1", "-keep 0": "-queue and -keep must be at least 1",
		"-grace 0s":   "-grace must be positive, and -linger must not be negative",
		"-linger -1s": "-grace must be positive, and -linger must not be negative",
		"-log xml":    `-log must be text or json, not "xml"`, "start": `unexpected argument "start"`,
	} {
		wantRun(t, args, "2 "+want+"\nUsage of plainapi:")
	}
	wantRun(t, "-h", "0 Usage of plainapi:")
	wantRun(t, "-addr "+ln.Addr().String(), "1 .* level=ERROR .* -addr")
	wantRun(t, "-log=json -addr="+ln.Addr().String(), `1 {.*"level":"ERROR"`)
	wantRun(t, "-journal "+journalOf(t, "damaged", ""), startFails+"tasks: ")
}

// A testProcess is the program in its own process, and a handler that forwards to it.
type testProcess struct {
	http.Handler
	*exec.Cmd
	host   string // and port
	stderr io.ReadCloser
	log    logBuffer
	exited chan struct{}
}

// patience is how long a process may take to listen or stop before it is killed, so that no test waits forever.
const patience = 10 * time.Second

// startProcess runs the program and returns once it is listening. It is killed at the end of the test.
func startProcess(t testing.TB, args ...string) *testProcess {
	t.Helper()
	p := &testProcess{exited: make(chan struct{})}
	p.Cmd = exec.Command(os.Args[0], slices.Concat([]string{"-addr", "127.0.0.1:0"}, fileFlags, args)...)
	p.Env = append(os.Environ(), "PLAINAPI_RUN=1")
	var err error
	p.stderr, err = p.StderrPipe()
	fatalIf(t, errors.Join(err, p.Start()))
	t.Cleanup(func() { p.end(os.Kill) })
	defer time.AfterFunc(patience, func() { p.Process.Kill() }).Stop()
	lines := bufio.NewScanner(io.TeeReader(p.stderr, &p.log))
	for p.host == "" && lines.Scan() {
		p.host = regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(lines.Text())
	}
	go func() { io.Copy(&p.log, p.stderr); p.Wait(); close(p.exited) }()
	if p.host == "" {
		t.Fatalf("the program did not start:\n%s", brief(p.log.String()))
	}
	p.Handler = remote(p.host, &http.Transport{ResponseHeaderTimeout: patience})
	return p
}

// end sends a signal, waits for the program to exit, and returns its exit code, or -1 if the signal killed it.
func (p *testProcess) end(s os.Signal) int {
	p.Process.Signal(s)
	defer time.AfterFunc(patience, func() { p.Process.Kill() }).Stop()
	<-p.exited
	return p.ProcessState.ExitCode()
}

func signalsWork(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("on Windows, a process can't send a signal to another")
	}
}

func TestSecondSignalEndsTheProgramAtOnce(t *testing.T) {
	signalsWork(t)
	p := startProcess(t)
	// While this task runs, the first signal does not end the program.
	taskOf(t, 202, post(p, `{"kind":"sleep","input":{"wait_time":10}}`))
	p.Process.Signal(os.Interrupt)
	for n := 0; n < 2000 && do(p, "GET", "/readyz", "").Code != 503; n++ {
		// Each response says whether the signal has arrived.
	}
	// Not SIGINT again: if a shell started this in the background, SIGINT is ignored.
	wantEqual(t, "the exit code, -1 if the signal killed it", p.end(syscall.SIGTERM), -1)
}

// TestShutdownSurvivesAClosedLog closes it as Ctrl-C does, which also kills the tee in "2>&1 | tee log.txt".
func TestShutdownSurvivesAClosedLog(t *testing.T) {
	signalsWork(t)
	p := startProcess(t)
	p.stderr.Close()
	wantEqual(t, "the exit code", p.end(syscall.SIGTERM), 0)
}

// TestShutdownLosesNoRequest sends SIGTERM while ten clients use keep-alive connections and a task runs.
func TestShutdownLosesNoRequest(t *testing.T) {
	signalsWork(t)
	p := startProcess(t, "-linger", "300ms")
	taskOf(t, 202, post(p, `{"kind":"sleep","input":{"wait_time":1}}`))
	var clients sync.WaitGroup
	busy := make(chan bool, 20) // receives when a client was served fifty times, or left
	for range 10 {
		clients.Go(func() {
			defer func() { busy <- true }()
			client := &http.Client{Transport: &http.Transport{}, Timeout: patience}
			defer client.CloseIdleConnections()
			for n := 0; ; n++ {
				if n == 50 {
					busy <- true
				}
				// A POST, since the transport would retry a GET by itself on another connection.
				resp, err := client.Post("http://"+p.host+"/nope", "", nil)
				if errors.Is(err, syscall.ECONNREFUSED) {
					return // a new connection, once the server is gone
				}
				if err != nil {
					t.Errorf("a client lost a request: %v", err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				if resp.Body.Close(); resp.Close {
					return
				}
			}
		})
	}
	<-busy
	wantEqual(t, "the exit code", p.end(syscall.SIGTERM), 0)
	clients.Wait()
	said := regexp.MustCompile(`(?m)msg=request .*\n|^time=\S+ level=INFO `).ReplaceAllString(p.log.String(), "")
	wantMatch(t, "the log", said, `(?s)url=http://127\.0\.0\.1:\d+/docs\n.*`+
		`"draining; a second signal ends the program at once" cause="terminated signal received" grace=20s\n.*`+
		`served requests=[1-9]\d+ queued=0 running=0 succeeded=1 failed=0 canceled=0\n.*stopped\n$`)
}

// TestKillLosesNoAcknowledgedTask kills the program while it accepts tasks, again and again, and asks for all of them.
func TestKillLosesNoAcknowledgedTask(t *testing.T) {
	args := []string{"-journal", journalOf(t), "-workers", "2"}
	var acknowledged []string
	for range 20 {
		p := startProcess(t, args...)
		replies := make(chan *httptest.ResponseRecorder, 3)
		for range cap(replies) {
			go func() { replies <- post(p, `{"kind":"primes","input":{"n":200000}}`) }()
		}
		for i := range cap(replies) {
			if w := <-replies; i == 0 || w.Code != 502 { // a 502 was cut off by the kill
				acknowledged = append(acknowledged, taskOf(t, 202, w).ID)
			}
			p.Process.Kill()
		}
		<-p.exited
	}
	p := startProcess(t, args...)
	for _, id := range acknowledged {
		if task := taskOf(t, 200, do(p, "GET", "/tasks/"+id, "", "Prefer", "wait=5")); !task.Status.Finished() {
			t.Fatalf("an acknowledged task is unfinished after five seconds: %+v", task)
		}
	}
}

// TestHostileClients checks that each connection is closed in time, with or without an answer.
func TestHostileClients(t *testing.T) {
	const get = "GET /healthz HTTP/1.1\r\nHost: x\r\n"
	const post = "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	for client, tt := range map[string]struct{ request, want string }{
		"sends a large header": {get + "X: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", `"HTTP/1.1 431" after 0s`},
		"sends half a header":  {get, `"" after 5s`},
		"sends half a body":    {post + "Content-Length: 100\r\n\r\n{", `"HTTP/1.1 408" after 15s`},
		"stays idle":           {get + "\r\n", `"HTTP/1.1 200" after 1m15s`},
		"does not read":        {get + "\r\n", `"" after 30s`},
	} {
		bubble(t, func(t *testing.T) {
			_, s := appStage(t, roomy, discard)
			conn, err := s.Dial(t.Context(), "", "")
			fatalIf(t, err)
			defer conn.Close()
			begin := time.Now()
			go io.WriteString(conn, tt.request)
			if client == "does not read" {
				time.Sleep(30*time.Second + time.Second/2) // by then the connection is closed
			}
			reply, _ := io.ReadAll(conn)
			got := fmt.Sprintf("%.12q after %v", reply, time.Since(begin).Truncate(time.Second))
			wantEqual(t, "a client that "+client, got, tt.want)
		})
	}
}

// TestWaitingPoll expects that a poll outlives the timeouts, gets its result in the drain, and ends with its client.
func TestWaitingPoll(t *testing.T) {
	bubble(t, func(t *testing.T) {
		log, lines := newLog()
		c := roomy
		c.journal = journalOf(t) // so that the shutdown leaves a task in the queue
		a, s := appStage(t, c, log)
		var target []string
		for range 5 { // one after the other, nine seconds each
			target = append(target, "/tasks/"+submit(t, a.tasks, "sleep", `{"wait_time":9}`).ID)
		}
		begin := time.Now()
		poll := func(target, prefer, want string) {
			t.Helper()
			task := taskOf(t, 200, do(remote("server", s.client.Transport), "GET", target, "", "Prefer", prefer))
			wantEqual(t, "the poll", fmt.Sprint(task.Status, " after ", time.Since(begin).Round(time.Second)), want)
		}
		poll(target[4], "wait=0", "queued after 0s")
		poll(target[4], "wait=30", "queued after 30s") // the full WriteTimeout of other requests
		impatient := &http.Transport{DialContext: s.Dial, ResponseHeaderTimeout: 100 * time.Millisecond}
		do(remote("server", impatient), "GET", target[4], "", "Prefer", "wait=30")
		synctest.Wait()
		wantCount(t, lines.String(), "status=499", 1)
		time.AfterFunc(time.Second, s.stop)
		poll(target[3], "wait=30", "succeeded after 36s")
		poll(target[4], "wait=30", "queued after 36s") // left for the next start
		fatalIf(t, <-s.ended)
		wantEqual(t, "the end of the shutdown", time.Since(begin).Round(time.Second), 38*time.Second)
	})
}

// deadlined is a ResponseWriter with a write deadline.
type deadlined struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (w *deadlined) SetWriteDeadline(deadline time.Time) error { w.deadline = deadline; return nil }

// TestPollSetsItsWriteDeadlineAfterTheWait expects it anew: if the machine stood still, the one from before is over.
func TestPollSetsItsWriteDeadlineAfterTheWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		r := httptest.NewRequest("GET", "/tasks/"+submit(t, a.tasks, "sleep", "").ID, nil)
		r.Header.Set("Prefer", "wait=30")
		w := &deadlined{ResponseRecorder: httptest.NewRecorder()}
		h.ServeHTTP(w, r)
		wantEqual(t, "the time to write", time.Until(w.deadline), writeTimeout)
	})
}

// BenchmarkHandler measures everything around a handler: the log line, the id, recovery, routing.
func BenchmarkHandler(b *testing.B) {
	bare := http.NewServeMux()
	bare.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { (&app{}).healthz(w, r) })
	benchmarkHandler(b, "bare ServeMux", "/healthz", bare)
	logging := slog.New(slog.NewTextHandler(io.Discard, nil))
	benchmarkHandler(b, "whole app", "/healthz", newApp(config{}, logging).handler())
	benchmarkHandler(b, "whole app, log off", "/healthz", newApp(config{}, discard).handler())
}

// BenchmarkSubmit measures what the journal costs over HTTP.
func BenchmarkSubmit(b *testing.B) {
	for name, journal := range map[string]string{"in memory": "", "with a journal": journalOf(b)} {
		b.Run(name, func(b *testing.B) {
			a := newApp(config{workers: 1, queue: math.MaxInt, keep: 1000}, discard)
			fatalIf(b, a.tasks.Start(journal))
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

// BenchmarkGetWhileTasksRun measures the lecture's promise: requests stay fast while tasks compute. The server is a
// process of its own, since the client would compete with the tasks. Try GOMAXPROCS=1, too.
func BenchmarkGetWhileTasksRun(b *testing.B) {
	p := startProcess(b)
	measure := func(b *testing.B) {
		var all []time.Duration
		for b.Loop() {
			begin := time.Now()
			if w := do(p, "GET", "/healthz", ""); w.Code != 200 {
				b.Fatalf("got %d %s", w.Code, brief(w.Body.String())) // once, not in every round
			}
			all = append(all, time.Since(begin))
			time.Sleep(2 * time.Millisecond) // a steady rate: otherwise the client takes a CPU from the tasks
		}
		slices.Sort(all)
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	}
	b.Run("idle", measure)
	for range 100 {
		taskOf(b, 202, post(p, `{"kind":"primes","input":{"n":50000000}}`))
	}
	b.Run("busy", measure)
}

// ---- the demo

func init() { fileFlags = append(fileFlags, "-items=") }

func TestDemoRoutes(t *testing.T) {
	wantRoutes(t, [][2]string{
		{`GET /users/`, `200 [{"username":"Rick"},{"username":"Morty"}]`},
		{`GET /users/%3Cb%3E%26%ED%95%9C`, `200 {"username":"<b>&한"}`},
		{`GET /orders/`, `200 [{"order":"Taco"},{"order":"Burritto"}]`},
		{`GET /orders/me`, `200 {"my_order":"taco"}`},
		{`GET /v1/1`, `200 "Boostcamp"`},
		{`GET /v1/2`, `200 "AI"`},
		{`GET /v1/5`, `500 `},
		{`GET /v1/x`, `422 path.item_id must be a 64-bit integer`},
		{`GET /v2/3`, `200 "Tech"`},
		{`GET /v2/+5`, `404 아이템을 찾을 수 없습니다 [id: 5]`},
		{`GET /v2/x`, `422 path.item_id must be a 64-bit integer`},
	})
}

// TestDemoItems checks a file with items, and files that can't be used.
func TestDemoItems(t *testing.T) {
	c := testConfig
	c.items = journalOf(t, `{"7": "seven"}`)
	a, _ := newTestAppWith(t, c, discard)
	wantEqual(t, "the items", a.items, map[int64]string{7: "seven"})
	wantRun(t, "-items nope.json", startFails+"items: ")
	wantRun(t, "-items "+journalOf(t, `{"one": 1}`), startFails+`items: .*\.jsonl: `)
	wantRun(t, "-items "+journalOf(t, "null"), startFails+"items: ")
}
