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
	"unicode/utf8"
)

// program is what the test binary runs instead of the tests if PLAINAPI_RUN is set. main.go's part
// sets it, for tests that need a process to stop or kill.
var program func()

func TestMain(m *testing.M) {
	if os.Getenv("PLAINAPI_RUN") != "" {
		program()
	}
	// The first use of os/signal starts a permanent goroutine, which no synctest bubble may
	// contain.
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
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
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

// bubble runs f in a synctest bubble, where time advances when every goroutine is blocked. A
// deadlock fails this test only; its panic would end all of them.
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

func benchmarkHandler(b *testing.B, h http.Handler, target string) {
	b.ReportAllocs()
	r := httptest.NewRequest("GET", target, nil)
	w := &httptest.ResponseRecorder{} // with no Body, so that writes are discarded
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

var wildcard = regexp.MustCompile(`\{\w+\}`)

// reveal answers with the pattern that matched and the values of its wildcards: "GET
// /users/{username}=Rick".
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

// transcript sends requests to h and checks the responses. A line is "GET /path: " and the status,
// followed by the redirect's target, or the methods that a 405 allows, or the body.
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
	b := routerOf("/b")
	c := routerOf("/c", "GET /{x}")
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
	h := root.Handler()

	transcript(t, h, // requests that match a route
		"GET /users/: 200 GET /users/{$}",
		"GET /users/Rick: 200 GET /users/{username}=Rick",
		"HEAD /users/Rick: 200 GET /users/{username}=Rick", // net/http sends no body
		"DELETE /users/Rick: 200 DELETE /users/{username}=Rick",
		"GET /bare: 200 GET /bare",
		"GET /t/acme/items/: 200 GET /t/{tenant}=acme/items/{$}",
		"GET /t/a%252F%2F%EB%B3%80/items/7: 200 GET /t/{tenant}=a%2F/변/items/{id}=7",
		"GET /c/1: 200 GET /c/{x}=1",
		"GET /a/b/c/1: 200 GET /a/b/c/{x}=1",
		"GET /a/b/late: 200 GET /a/b/late",
		"GET /own404: 404 404 page not found", // the handler's own 404, not NoMatch's
	)
	transcript(t, h, // redirects to a route
		"GET /t/acme/items?a=1&b=%20: 307 /t/acme/items/?a=1&b=%20",
		"GET //evil.example/users: 307 /evil.example/users",
	)
	transcript(t, h, // requests for NoMatch
		"GET /: 418 none",
		"GET /users/a/b: 418 none",
		"GET /bare/: 418 none",
		"GET /a/b/: 418 none",
		"GET *: 418 none",
		"CONNECT example.com:443: 418 none",
		"POST /users: 418 GET, HEAD", // no redirect to a path that has no POST
		"PUT /users/a%2Fb: 418 DELETE, GET, HEAD, POST",
		"OPTIONS /bare: 418 GET, HEAD, POST",
	)
}

// TestRouterTakesWhatOneServeMuxTakes checks prefixes beside wildcards that seem to get in their
// way.
func TestRouterTakesWhatOneServeMuxTakes(t *testing.T) {
	root := routerOf("", "GET /{page}", "GET /{user}/settings",
		routerOf("/v1", "POST ", "GET /items"),
		routerOf("/users", "DELETE /me", routerOf("/{id}", "DELETE ", "GET /posts"), routerOf("/me", "GET /posts")),
	)
	transcript(t, root.Handler(),
		"GET /v1/items: 200 GET /v1/items",
		"GET /v1/settings: 200 GET /{user}=v1/settings",
		"GET /v1: 200 GET /{page}=v1",
		"DELETE /v1: 405 GET, HEAD, POST",
		"DELETE /v1/settings: 405 GET, HEAD",
		"DELETE /users/me: 200 DELETE /users/me",
		"GET /users/me: 405 DELETE",
		"GET /users/me/posts: 200 GET /users/me/posts",
	)
	root = routerOf("", routerOf("/users", "GET /"), routerOf("/{tenant}", "GET /items"))
	transcript(t, root.Handler(),
		"GET /users: 307 /users/",
		"GET /users/items: 200 GET /{tenant}=users/items",
	)
}

// TestRouterMiddleware checks that middleware is called once per place, and runs in order: a router's after the match,
// the outermost router's for every request.
func TestRouterMiddleware(t *testing.T) {
	called := ""
	note := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			called += name + " "
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s %s, ", name, r.Pattern)
				next.ServeHTTP(w, r)
			})
		}
	}
	inner := routerOf("/in", "GET /z")
	inner.Use(note("5"))
	sub := routerOf("/sub", "GET /", "GET /x", inner)
	sub.Use(note("3"), note("4")) // added after the routes, but still wraps them
	root := routerOf("", "GET /y", sub, routerOf("/again", inner))
	root.Use(note("1"))
	root.Use(note("2"))
	h := root.Handler()
	wantEqual(t, "the calls of middleware", called, "5 4 3 5 2 1 ")
	transcript(t, h,
		"GET /sub/: 200 1 , 2 , 3 GET /sub/{$}, 4 GET /sub/{$}, GET /sub/{$}",
		"GET /sub/x: 200 1 , 2 , 3 GET /sub/x, 4 GET /sub/x, GET /sub/x",
		"GET /sub/in/z: 200 1 , 2 , 3 GET /sub/in/z, 4 GET /sub/in/z, 5 GET /sub/in/z, GET /sub/in/z",
		"GET /again/in/z: 200 1 , 2 , 5 GET /again/in/z, GET /again/in/z",
		"GET /y: 200 1 , 2 , GET /y",
	)
	for _, request := range []string{"GET /sub", "GET /sub/a", "POST /sub/", "OPTIONS /y", "OPTIONS *", "CONNECT x:443"} {
		method, target, _ := strings.Cut(request, " ")
		got := do(h, method, target, "").Body.String()
		if !strings.HasPrefix(got, "1 , 2 , ") || strings.Contains(got, "3") {
			t.Errorf("%s: got %s, want it to pass 1 and 2 alone", request, brief(got))
		}
	}
}

type namedHandlers struct{}

func (namedHandlers) readUserID(http.ResponseWriter, *http.Request) {}
func read_user[T any](http.ResponseWriter, *http.Request)           {}

func TestRoutesIsTheWholeTable(t *testing.T) {
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
	want := []string{
		`{"method":"DELETE","path":"/outer/x","tags":["a","b","c","out"],"summary":"","example":""}`,
		`{"method":"GET","path":"/outer/{in}/","tags":["a","b","c","out","in"],"summary":"Read User ID","example":""}`,
		`{"method":"PATCH","path":"/outer/{in}","tags":["a","b","c","out","in"],"summary":"Read_user","example":"{}"}`,
		`{"method":"POST","path":"/outer/last","tags":["a","b","c","out","last"],"summary":"","example":""}`,
		`{"method":"POST","path":"/last","tags":["a","b","c","last"],"summary":"","example":""}`,
	}
	var got []string
	for _, r := range root.Routes() {
		line, _ := json.Marshal(r)
		got = append(got, string(line))
	}
	wantEqual(t, "the routes", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

func TestRouterPanicsOnAMistakeAndNamesIt(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		line       func() // the line with the mistake
	}{
		{"prefix without a slash", `router "users"`, func() { NewRouter("users") }},
		{"prefix that ends with a slash", `router "/users/"`, func() { NewRouter("/users/") }},
		{"wildcard of many segments in the prefix", `"GET /{x...}/"`, func() { NewRouter("/{x...}") }},
		{"path without a slash", "route GET /ux: the path must be empty or start with a slash", func() { NewRouter("/u").Get("x", reveal) }},
		{"bad wildcard", `"GET /u/{id"`, func() { NewRouter("/u").Get("/{id", reveal) }},
		{"no method", "route  /u/x", func() { NewRouter("/u").Handle("", "/x", reveal) }},
		{"space in the method", "route G T /u/x", func() { NewRouter("/u").Handle("G T", "/x", reveal) }},
		{"tab in the method", "route G\tT /u/x", func() { NewRouter("/u").Handle("G\tT", "/x", reveal) }},
		{"CONNECT", "route CONNECT /u/x", func() { NewRouter("/u").Handle("CONNECT", "/x", reveal) }},
		{"nil handler", "route GET /u/x: the handler must not be nil", func() { NewRouter("/u").Get("/x", nil) }},
		{"nil func", "route GET /u/x: the handler must not be nil", func() { NewRouter("/u").Get("/x", http.HandlerFunc(nil)) }},
		{"neither prefix nor path", `"GET "`, func() { routerOf("", "GET ").Handler() }},
		{"conflict", `"GET /u/a/{y}"`, func() { routerOf("/u", "GET /{x}/b", routerOf("/a", "GET /{y}")).Handler() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustPanic(t, tt.line); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want it to name %s", got, tt.want)
			}
		})
	}
}

// TestDocsListsTheRoutes checks that /docs lists the routes that exist at its first request, as
// JSON that can't end its script element.
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

func TestDocsPolicyLetsNothingRunButThePagesOwn(t *testing.T) {
	w := do(NewRouter("").Docs(), "GET", "/docs", "")
	want := []string{
		"base-uri 'none'", "connect-src 'self'", "default-src 'none'", "form-action 'none'", "frame-ancestors 'none'",
		"img-src data:", // an icon in the page
	}
	inline := regexp.MustCompile(`(?s)<(script|style)([^>]*)>(.*?)</(?:script|style)>`)
	for _, m := range inline.FindAllStringSubmatch(w.Body.String(), -1) {
		if strings.Contains(m[2], "application/json") {
			continue // data, which doesn't run and needs no hash
		}
		sum := sha256.Sum256([]byte(m[3]))
		want = append(want, m[1]+"-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	got := slices.Sorted(strings.SplitSeq(w.Header().Get("Content-Security-Policy"), "; "))
	slices.Sort(want)
	wantEqual(t, "the policy", got, want)
	// The page must not contain what the policy would block.
	blocked := regexp.MustCompile(`<[^>]*\s(on[a-z]+|style|src)=|innerHTML|https?://`)
	wantEqual(t, "blocked content in the page", blocked.FindString(w.Body.String()), "")
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
	for _, bb := range []struct {
		name, target string
		h            http.Handler
	}{
		{"one prefix/Router", "/users/Rick", routerOf("", users).Handler()},
		{"one prefix/StripPrefix", "/users/Rick", mount("/users", mux)},
		{"two prefixes/Router", "/v1/users/Rick", routerOf("", routerOf("/v1", users)).Handler()},
		{"two prefixes/StripPrefix", "/v1/users/Rick", mount("/v1", mount("/users", mux))},
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

// problemOf checks that a response is a complete problem (RFC 9457), and returns it.
func problemOf(t *testing.T, w *httptest.ResponseRecorder) (p Problem) {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("status %d has Content-Type %q, want application/problem+json", w.Code, got)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("status %d has body %q: %v", w.Code, brief(w.Body.String()), err)
	}
	if p.Status != w.Code || p.Title != http.StatusText(w.Code) || p.Type != "about:blank" ||
		p.RequestID == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("status %d with the headers %v has the problem %+v", w.Code, w.Header(), p)
	}
	return p
}

// fail is an endpoint that returns err.
func fail(err error) Endpoint { return func(http.ResponseWriter, *http.Request) error { return err } }

// wrapped is a ResponseWriter wrapped as middleware does it.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// brokenWriter is a ResponseWriter whose writes fail and that can't be flushed.
type brokenWriter struct{ http.ResponseWriter }

func (w brokenWriter) Write(p []byte) (int, error) {
	w.ResponseWriter.Write(p)
	return 0, io.ErrClosedPipe
}

// TestFailure checks what a failure tells the client and the log.
func TestFailure(t *testing.T) {
	// The log has this one line; the level, status, cause and "stack" are compared.
	line := regexp.MustCompile(`^time=\S+ level=(\w+) .* status=(\d+) .* request_id=\S+` +
		`(?: cause=(\w+|".*?"))?(?: (stack)=".*panic\(.*")?\n$`)
	panics := func(p any) Endpoint { return func(http.ResponseWriter, *http.Request) error { panic(p) } }
	write := func(status int, v any) Endpoint {
		return func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, status, v) }
	}
	half := func(w http.ResponseWriter, _ *http.Request) error { return json.NewEncoder(w).Encode("half") }
	flush := func(w http.ResponseWriter, _ *http.Request) error { return http.NewResponseController(w).Flush() }
	flusher := func(w http.ResponseWriter, _ *http.Request) error { w.(http.Flusher).Flush(); return nil }
	begin := func(status int) Endpoint {
		return func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(status)
			return io.EOF
		}
	}
	after := func(first, then Endpoint) Endpoint {
		return func(w http.ResponseWriter, r *http.Request) error { return errors.Join(first(w, r), then(w, r)) }
	}
	taken := Errorf(409, "taken") // shared by several rows, since Because copies it
	beyond := Errorf(600, "secret")
	beyond.Header.Set("Retry-After", "secret")
	inWrapped := func(w http.ResponseWriter, r *http.Request) error {
		fail(taken).ServeHTTP(wrapped{w}, r)
		return nil
	}
	secret := errors.New("dial: secret")
	tooLarge := fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 9})
	const (
		here, gone, broken = "here", "gone", "broken"
		aborted            = "net/http: abort Handler" // so that a partial response doesn't look complete
		notWritten         = "write the response: io: read/write on closed pipe"
	)
	for _, tt := range []struct {
		name, client string
		e            Endpoint
		reply        string // status and detail
		log          string
	}{
		{"HTTPError", here, fail(taken), "409 taken", `INFO 409 "409 taken"`},
		{"with a cause", here, fail(taken.Because(secret)), "409 taken", `INFO 409 "409 taken: dial: secret"`},
		{"wrapped", here, fail(fmt.Errorf("find: %w", Errorf(400, "odd"))), "400 odd", `INFO 400 "find: 400 odd"`},
		{"in a wrapped ResponseWriter", here, inWrapped, "409 taken", `INFO 409 "409 taken"`},
		{"last status", here, fail(Errorf(599, "odd")), "599 odd", `ERROR 599 "599 odd"`},
		{"status beyond the last", here, fail(beyond), "500 ", `ERROR 500 "600 secret"`},
		{"status that is no error", here, fail(Errorf(399, "secret")), "500 ", `ERROR 500 "399 secret"`},
		{"no status", here, write(1000, 1), "500 ", `ERROR 500 "panic: invalid WriteHeader code 1000" stack`},
		{"any other error", here, fail(secret), "500 ", `ERROR 500 "dial: secret"`},
		{"any other, client gone", gone, fail(secret), "500 ", `ERROR 500 "dial: secret"`},
		{"too large", here, fail(tooLarge), "413 the body is larger than 9 bytes", `INFO 413 "read: http: request body too large"`},
		{"no JSON", here, write(200, math.NaN()), "500 ", `ERROR 500 "encode the response: json: unsupported value: NaN"`},
		{"panic", here, panics(secret), "500 ", `ERROR 500 "panic: dial: secret" stack`},
		{"canceled", gone, fail(taken.Because(context.Canceled)), aborted, `INFO 499 "409 taken: context canceled"`},
		{"canceled by another", here, fail(context.Canceled), "500 ", `ERROR 500 "context canceled"`},
		{"error after Write", here, after(half, fail(secret)), aborted, `ERROR 200 "dial: secret"`},
		{"error after Flush", here, after(flush, fail(io.EOF)), aborted, "ERROR 200 EOF"},
		{"error after a Flusher's Flush", here, after(flusher, fail(io.EOF)), aborted, "ERROR 200 EOF"},
		{"error after WriteHeader", here, begin(200), aborted, "ERROR 200 EOF"},
		{"error after 101", here, begin(101), aborted, "ERROR 101 EOF"},
		{"panic after Write, client gone", gone, after(half, panics("oh")), aborted, `ERROR 200 "panic: oh" stack`},
		{"abort after Write", here, after(half, panics(http.ErrAbortHandler)), aborted, "ERROR 200"},
		{"abort, client gone", gone, panics(http.ErrAbortHandler), aborted, "INFO 499"},
		{"reply not written", broken, write(201, 1), aborted, `ERROR 201 "` + notWritten + `"`},
		{"error not written", broken, fail(taken), "409 taken", `INFO 409 "409 taken\n` + notWritten + `"`},
		{"not flushed, so not begun", broken, flush, "500 ", `ERROR 500 "feature not supported\n` + notWritten + `"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			log, lines := newLog()
			w, r := httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", "/", nil)
			clients := map[string]http.ResponseWriter{here: w, gone: w, broken: brokenWriter{w}}
			if tt.client == gone {
				leave()
			}
			var panicked any
			func() {
				defer func() { panicked = recover() }()
				Observe(log, tt.e).ServeHTTP(clients[tt.client], r)
			}()
			got := fmt.Sprint(panicked)
			if panicked == nil {
				got = fmt.Sprint(w.Code, " ", problemOf(t, w).Detail)
			}
			more := got == aborted && w.Body.Len() > len("\"half\"\n")
			told := fmt.Sprint(w.Header(), " ", w.Body)
			if got != tt.reply || more || strings.Contains(told, "secret") {
				t.Errorf("got %q, want %q; the client received %q, want no extra bytes and no secret", got, tt.reply, brief(told))
			}
			if got := strings.TrimSpace(line.ReplaceAllString(lines.String(), "$1 $2 $3 $4")); got != tt.log {
				t.Errorf("the log is\n%s, want one line with\n%s", brief(got), tt.log)
			}
		})
	}
}

func TestErrorReplyIsWholeAndHasNothingOfTheReplyThatFailed(t *testing.T) {
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
	want := `{"type":"about:blank","title":"Unprocessable Entity","status":422,"detail":"path.id is <odd>; body is 변",` +
		`"errors":[{"loc":["path","id"],"msg":"is <odd>"},{"loc":["body"],"msg":"is 변"}],"request_id":"x"}` + "\n"
	wantEqual(t, "the body", w.Body.String(), want)
}

// TestErrorKeepsTheEncodingOfMiddleware: middleware that encodes sets the header first, and wraps w, so the error is
// encoded too.
func TestErrorKeepsTheEncodingOfMiddleware(t *testing.T) {
	encode := func(next http.Handler, wrap func(http.ResponseWriter) http.ResponseWriter) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			next.ServeHTTP(wrap(w), r)
		})
	}
	encodes := func(w http.ResponseWriter) http.ResponseWriter { return wrapped{w} }
	onlySays := func(w http.ResponseWriter) http.ResponseWriter { return w }
	overwrites := Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Content-Encoding", "br")
		return Errorf(404, "nothing")
	})
	panics := Endpoint(func(http.ResponseWriter, *http.Request) error { panic("oh") }) // its 500 goes past the middleware
	for _, tt := range []struct {
		name, want string
		h          http.Handler
	}{
		{"an error", "gzip", encode(overwrites, encodes)},
		{"an error that is not encoded", "", encode(overwrites, onlySays)},
		{"a panic", "", encode(panics, encodes)},
	} {
		got := do(Observe(discard, tt.h), "GET", "/", "").Header().Get("Content-Encoding")
		wantEqual(t, "the Content-Encoding of "+tt.name, got, tt.want)
	}
}

func TestBecauseCopiesTheHeader(t *testing.T) {
	shared := Errorf(503, "busy")
	shared.Because(io.EOF).Header.Set("Retry-After", "1")
	wantEqual(t, "the header of the original", shared.Header, http.Header{})
}

func TestWriteJSONSendsNoBodyWhereTheStatusForbidsIt(t *testing.T) {
	for _, status := range []int{http.StatusNoContent, http.StatusResetContent, http.StatusNotModified} {
		w := do(Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
			return WriteJSON(w, status, nil)
		})), "GET", "/", "")
		got := fmt.Sprintf("%d %q %q", w.Code, w.Header().Get("Content-Type"), w.Body)
		wantEqual(t, "the response", got, fmt.Sprintf(`%d "" ""`, status))
	}
}

// TestHijackedConnectionIsTheHandlers: the log has no status for it, and an error after it is only logged.
func TestHijackedConnectionIsTheHandlers(t *testing.T) {
	log, lines := newLog()
	done := make(chan bool)
	observed := Observe(log, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return err
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 299 Mine\r\nContent-Length: 0\r\n\r\n")
		return io.EOF
	}))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		observed.ServeHTTP(w, r)
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	fatalIf(t, err)
	resp.Body.Close()
	<-done
	wantEqual(t, "the status", resp.StatusCode, 299)
	said := regexp.MustCompile(`^time=\S+ level=ERROR msg=request .* status=0 .* hijacked=true cause=EOF\n$`)
	if got := lines.String(); !said.MatchString(got) {
		t.Errorf("the log is %s, want one line with %s", brief(got), said)
	}
}

// TestObserveLeavesTheConnectionInReach needs a real connection: a recorder takes a 103 for the
// final response.
func TestObserveLeavesTheConnectionInReach(t *testing.T) {
	srv := httptest.NewServer(Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(http.StatusEarlyHints) // does not begin the final response
		if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		return Errorf(404, "nothing")
	})))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	fatalIf(t, err)
	resp.Body.Close()
	wantEqual(t, "the status", resp.StatusCode, 404)
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
		wantEqual(t, "the log", got, `level=INFO msg=request method=GET path="/users/a\nlevel=ERROR\x1b[2J\"" route=/users/{username} `+
			`status=200 bytes=5 duration=5s request_id=a
level=INFO msg=request method=HEAD path=/users/x route=/users/{username} status=200 bytes=0 duration=5s request_id=b
level=INFO msg=request method=GET path=/nothing route=/nothing status=200 bytes=0 duration=0s request_id=c
level=INFO msg=request method=GET path=/nowhere route="" status=404 bytes=19 duration=0s request_id=d
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
		logged := strings.HasSuffix(lines.String(), " request_id="+got+"\n")
		if seen[got] || !logged || !regexp.MustCompile("^"+want+"$").MatchString(got) {
			t.Errorf("%q became %q, want a new %s, in the log: %q", sent, got, want, brief(lines.String()))
		}
		seen[got] = true
	}
}

func TestEndpointWithoutObserveIsObserved(t *testing.T) {
	lines := &logBuffer{}
	defer log.SetOutput(log.Writer())
	log.SetOutput(lines) // slog.Default() writes there
	problemOf(t, do(fail(Errorf(404, "nothing")), "GET", "/", ""))
	if got := lines.String(); !strings.Contains(got, `cause="404 nothing"`) {
		t.Errorf("the log is %q", brief(got))
	}
}

type person struct {
	Name string              `json:"name"`
	Age  int                 `json:"age"`
	Born time.Time           `json:"born"`
	Home struct{ Floor int } `json:"home"`
}

// selfRead reads its own JSON, into a struct.
type selfRead struct{}

func (selfRead) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, new(struct {
		C string `json:"c"`
	}))
}

// unborn is what Validate returns for any negative age; callers must not change it.
var unborn = []FieldError{{[]string{"age"}, "must not be negative"}, {[]string{"name"}, "must not be given yet"}}

func (p *person) Validate() []FieldError {
	if p.Age < 0 {
		return unborn
	}
	return nil
}

// told returns what the client is told about an error: the status, and the fields at fault or the
// detail.
func told(err error) string {
	p := NewProblem(err)
	if p.Status == http.StatusUnprocessableEntity {
		return fmt.Sprint(p.Status, " ", p.Errors)
	}
	return fmt.Sprint(p.Status, " ", p.Detail)
}

func TestReadJSON(t *testing.T) {
	const js, noJSON = "application/json", "415 the Content-Type must be application/json"
	const tooLarge = "413 the body is larger than 1048576 bytes"
	text, broken := strings.NewReader, iotest.ErrReader
	for _, tt := range []struct {
		contentType string
		body        io.Reader
		length      int64 // -1 if unknown
		want        string
	}{
		{js + "; charset=utf-8", text(`{"name": "변"}`), 15, "변"},
		{"application/x-www-form-urlencoded", text("{}"), 2, noJSON},
		{js + ";;", text("{}"), 2, noJSON},
		{js, broken(os.ErrDeadlineExceeded), 9, "408 the body did not arrive in time"},
		{js, broken(io.ErrUnexpectedEOF), 9, "400 the body could not be read in full"},
		{js, text(`"` + strings.Repeat("x", 1<<20-2) + `"`), 1 << 20, "422 [{[body] must be an object}]"},
		{js, text(strings.Repeat("[", 1<<20+1)), -1, tooLarge},
		{js, broken(io.ErrUnexpectedEOF), 1<<20 + 1, tooLarge}, // rejected unread: see Expect: 100-continue
	} {
		var p person
		r := httptest.NewRequest("POST", "/", tt.body)
		r.ContentLength = tt.length
		r.Header.Set("Content-Type", tt.contentType)
		err := ReadJSON(httptest.NewRecorder(), r, &p)
		got := p.Name
		if err != nil {
			got = told(err)
		}
		wantEqual(t, fmt.Sprintf("%s of %d bytes", tt.contentType, tt.length), got, tt.want)
	}
}

func TestDecodeJSONNamesWhatIsWrong(t *testing.T) {
	const tooOld = "422 [{[body input age] must not be negative} {[body input name] must not be given yet}]"
	long := strings.Repeat("한", 64)
	for _, tt := range []struct{ data, want string }{
		{"", "400 body.input is not valid JSON: see byte 0"},
		{"{} {}", "400 body.input is not valid JSON: see byte 4"},
		{"{\"name\": \"\xff\"}", "400 body.input is not valid UTF-8"},
		{" null ", "422 [{[body input] must not be null}]"},
		{`{"n\"me": "Rick"}`, `422 [{[body input n"me] is not a known field}]`},
		{`{"` + long + long + `": 1}`, "422 [{[body input " + long + "] is not a known field}]"},
		{`{"home": {"Floor": "1"}}`, "422 [{[body input home Floor] must be an integer within range}]"},
		{`{"born": "now"}`, "422 [{[body input] does not have the right shape}]"},
		{`{"age": -1}`, tooOld},
		{`{"age": -1}`, tooOld}, // again
	} {
		wantEqual(t, tt.data, told(DecodeJSON([]byte(tt.data), new(person), "body", "input")), tt.want)
	}
}

// TestDecodeJSONSaysOnlyWhatIsTrue of types that read their own JSON, and of places that encoding/json does not know.
func TestDecodeJSONSaysOnlyWhatIsTrue(t *testing.T) {
	const shapeless = "422 [{[body] does not have the right shape}]"
	for _, tt := range []struct {
		data, want string
		v          any
	}{
		{`"x"`, "422 [{[body] must be a number}]", new(float32)},
		{`"x"`, "422 [{[body] must be true or false}]", new(bool)},
		{`300`, "422 [{[body] must be an integer within range}]", new(int8)},
		{`1`, "422 [{[body] must be an array}]", new([1]int)},
		{`1`, "422 [{[body] must be an object}]", new(map[string]int)},
		{`true`, "422 [{[body] must be a number}]", new(json.Number)},
		{`{"a": "x"}`, "422 [{[body a] must be an integer within range}]", new(struct {
			A int `json:"a"`
		})},
		{`5`, shapeless, new(time.Time)},
		{`5`, shapeless, new(netip.Addr)},
		{`5`, shapeless, new(net.IP)},
		{`5`, shapeless, new([]byte)},
		{`true`, shapeless, new(big.Float)},
		{`true`, shapeless, new(slog.Level)}, // an int that reads its name
		{`"x"`, "500 ", person{}},            // not a pointer: the program's fault
	} {
		wantEqual(t, fmt.Sprintf("%s into a %T", tt.data, tt.v), told(DecodeJSON([]byte(tt.data), tt.v, "body")), tt.want)
	}
	// Go 1.26 knows the place inside nest, Go 1.27 does not.
	nested := told(DecodeJSON([]byte(`{"nest": {"c": 5}}`), new(struct{ Nest selfRead }), "body"))
	if nested != shapeless && !strings.HasPrefix(nested, "422 [{[body Nest c") {
		t.Errorf("a type that reads its own JSON: got %s", nested)
	}
	for _, key := range []string{strings.Repeat("x", 1<<20), strings.Repeat("x.", 1<<19)} {
		e := DecodeJSON([]byte(`{"`+key+`": "x"}`), new(map[string]int), "body")
		if got := e.Error(); len(got) > 4000 {
			t.Errorf("the error has %d bytes: %s", len(got), brief(got))
		}
	}
}

// FuzzDecodeJSON checks that rejected data is reported as the client's fault, briefly and with its
// place.
func FuzzDecodeJSON(f *testing.F) {
	f.Add([]byte(`{"name": "\ud800", "born": "2026-01-02T03:04:05.6+07:00", "a\"b": 1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		want := http.StatusBadRequest
		if json.Valid(data) && utf8.Valid(data) {
			want = http.StatusUnprocessableEntity
		}
		err := DecodeJSON(data, new(person), "body", "input")
		p, accepted := NewProblem(err), err == nil && want == http.StatusUnprocessableEntity
		if !accepted && (p.Status != want || len(p.Detail) > 600 || !strings.HasPrefix(p.Detail, "body.input")) {
			t.Errorf("%q: got %v, want a short %d that names body.input", data, err, want)
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

// runSecond takes a second. Once its context is canceled, it goes on for a minute.
func runSecond(ctx context.Context, _ Task, progress func(float64)) (any, error) {
	for _, p := range []float64{0.5, 0.1, -1, math.NaN()} {
		progress(p)
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
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
	for _, task := range tasks {
		s := fmt.Sprintf("%s %d %v %s%s", task.Status, task.Attempt, task.Progress, string(task.Result), string(task.Error))
		states = append(states, strings.TrimSpace(s))
	}
	return strings.Join(states, ", ")
}

func wantCount(t testing.TB, text, part string, want int) {
	t.Helper()
	if got := strings.Count(text, part); got != want {
		t.Errorf("found %[2]q %[1]d times, want %[3]d, in %[4]s", got, part, want, brief(text))
	}
}

func TestTaskFromQueuedToItsEnd(t *testing.T) {
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

func TestTaskIsRefusedFailsOrSucceedsAlone(t *testing.T) {
	const failed = `failed 1 1 {"detail":"the task failed"}`
	for _, tt := range []struct {
		kind, input string
		error       func(error) json.RawMessage
		want, cause string // cause is in the log
	}{
		{"fill", "1", nil, "succeeded 1 1 2", ""},
		{"refuse", "1", nil, "refused", ""},
		{"echo", `"<b>&아이템"`, nil, `succeeded 1 1 "<b>&아이템"`, ""},
		{"itself", "5", nil, `succeeded 1 1 {"id":"ID","kind":"itself","status":"running","attempt":1,"progress":0,"input":5,`, ""},
		{"echo", "{", nil, ErrBadInput.Error(), ""},
		{"echo", "1,2", nil, ErrBadInput.Error(), ""},           // only a list can hold both
		{"echo", nestedTo(9_999), nil, ErrBadInput.Error(), ""}, // too deep for a list of tasks
		{"echo", nestedTo(9_998), nil, "succeeded 1 1 [[[", ""},
		{"garble", "", nil, ErrBadInput.Error(), ""},
		{"deep", "", nil, `failed 1 1 "the result is nested too deeply"`, `"the result is nested too deeply"`},
		{"nope", "", nil, ErrUnknownKind.Error(), ""},
		{"fail", "", nil, `failed 1 1 "secret"`, "secret"},
		{"fail", "", func(error) json.RawMessage { return nil }, failed, "secret"},
		{"fail", "", func(error) json.RawMessage { panic("x") }, failed, "secret"},
		{"fail", "", func(error) json.RawMessage { return json.RawMessage(nestedTo(9_999)) }, failed, "secret"},
		{"panic", "", nil, `failed 1 1 "panic: secret`, `"panic: secret\ngoroutine`}, // and its stack
		{"NaN", "", nil, `failed 1 1 "json: unsupported value`, `"json: unsupported value: NaN"`},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Error: tt.error, Log: log}, journalOf(t))
			input := json.RawMessage(tt.input)
			task, err := tasks.Submit(tt.kind, input)
			got := fmt.Sprint(err)
			clear(input) // the caller may reuse it: the task has a copy
			if err == nil {
				got = strings.Replace(statesOf(wait(t, tasks, task.ID)), task.ID, "ID", 1)
			}
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("%s(%s): got %s, want %s", tt.kind, brief(tt.input), brief(got), tt.want)
			}
			if _, err := json.Marshal(tasks.List("", 9)); err != nil {
				t.Errorf("%s(%s): the list can't be sent: %v", tt.kind, brief(tt.input), err)
			}
			after := wait(t, tasks, submit(t, tasks, "echo", "").ID)
			wantEqual(t, "the task after "+tt.kind, after.Status, Succeeded)
			synctest.Wait()
			errs, line := min(1, len(tt.cause)), fmt.Sprintf("id=%s kind=%s duration=0s cause=%s", task.ID, tt.kind, tt.cause)
			wantCount(t, lines.String(), "level=ERROR", errs)
			wantCount(t, lines.String(), line, errs)
		})
	}
}

func TestQueueIsInOrderAndBounded(t *testing.T) {
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

func TestConfigZeroMeansTheDefault(t *testing.T) {
	c := NewTasks(Config{}).config
	want := []any{max(1, runtime.GOMAXPROCS(0)-1), 1000, 1000, slog.Default()}
	wantEqual(t, "Workers, Queue, Keep, Log", []any{c.Workers, c.Queue, c.Keep, c.Log}, want)
	for _, c := range []Config{{Workers: -1}, {Queue: -1}, {Keep: -1}} {
		mustPanic(t, func() { NewTasks(c) })
	}
}

func TestListIsNewestFirstAndIDsTellTheirStory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 2, Keep: 4}, "")
		long := submit(t, tasks, "second", `"long"`).ID
		synctest.Wait()
		for i := range 102 { // all but the last four are dropped
			wait(t, tasks, submit(t, tasks, []string{"echo", "fail"}[i%2], strconv.Itoa(i)).ID)
		}
		lists := [][]Task{tasks.List("", 100), tasks.List("", 2), tasks.List(Succeeded, 100), tasks.List(Failed, 1)}
		for i, want := range []string{`101 100 99 98 "long"`, "101 100", "100 98", "101"} {
			wantEqual(t, "List", inputsOf(lists[i]), want)
		}
		if len(tasks.jobs) != 5 || len(tasks.created) > 10 {
			t.Errorf("holds %d tasks and %d ids, want 5 and at most 10", len(tasks.jobs), len(tasks.created))
		}
		counts := map[Status]int{Queued: 0, Running: 1, Succeeded: 51, Failed: 51}
		wantEqual(t, "Counts, including dropped tasks", tasks.Counts(), counts)

		run := strings.TrimSuffix(long, "-1")
		for id, want := range map[string]error{
			run + "-100": nil, run + "-103": nil,
			run + "-2": ErrGone, run + "-99": ErrGone, "aaaaaaaa-999999999999999999": ErrGone, // the highest id of another run
			run + "-104": ErrNotFound, run + "-0": ErrNotFound, run + "-99999999999999999999": ErrNotFound,
			"aaaaaaaa-1x": ErrNotFound, "AAAAAAAA-1": ErrNotFound, "": ErrNotFound,
		} {
			_, got := tasks.Get(id)
			_, waited := tasks.Wait(t.Context(), id)
			_, canceled := tasks.Cancel(id)
			wantEqual(t, "Get, Wait, Cancel of "+id, []error{got, waited, canceled}, []error{want, want, cmp.Or(want, ErrFinished)})
		}
	})
}

// TestCancelIsAtOnce cancels a running and a queued task, whatever Run does next.
func TestCancelIsAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		tasks := startTasks(t, Config{}, "")
		running, queued := submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
		synctest.Wait()
		for _, id := range []string{running, queued, queued} { // canceling again is not an error
			task, err := tasks.Cancel(id)
			fatalIf(t, err)
			wantEqual(t, "FinishedAt", task.FinishedAt, time.Now().UTC())
		}
		want := fmt.Sprintf("canceled 1 0.5 %[1]s, canceled 0 0 %[1]s", errorText(ErrCanceled))
		wantEqual(t, "the tasks", statesOf(wait(t, tasks, running), wait(t, tasks, queued)), want)
		wantEqual(t, "the cause", context.Cause(tasks.jobs[running].ctx), ErrCanceled)
		time.Sleep(time.Hour)
		wantEqual(t, "the tasks after an hour", statesOf(wait(t, tasks, running), wait(t, tasks, queued)), want)
		wantEqual(t, "Counts", tasks.Counts(), map[Status]int{Canceled: 2, Queued: 0, Running: 0})
	})
}

// TestStopWaitsThenCutsOff checks that Stop waits for queued tasks too, unless a journal keeps them for
// the next start.
func TestStopWaitsThenCutsOff(t *testing.T) {
	canceled := fmt.Sprintf("canceled 1 0.5 %[1]s, canceled 0 0 %[1]s", errorText(ErrStopped))
	const left = `level=INFO msg="tasks are left in the journal for the next start" `
	for _, tt := range []struct {
		journal   string
		within    time.Duration
		want, log string // of the running task and the queued one
		cancel    error  // of canceling the queued one afterwards
	}{
		{"", time.Minute, "succeeded 1 1 null, succeeded 1 1 null", `level=INFO msg="task succeeded" id=%[2]s`, ErrFinished},
		{"", time.Millisecond, canceled, `level=WARN msg="tasks were canceled by the shutdown" ids="[%s %s]"`, nil},
		{journalOf(t), time.Minute, "succeeded 1 1 null, queued 0 0", left + "ids=[%[2]s]", ErrStopped},
		{journalOf(t), time.Millisecond, "queued 0 0, queued 0 0", left + `ids="[%s %s]"`, ErrStopped},
	} {
		bubble(t, func(t *testing.T) {
			cutOff := tt.within < time.Second
			log, lines := newLog()
			tasks := startTasks(t, Config{Log: log}, tt.journal)
			running, queued := submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
			synctest.Wait()
			stopped := make(chan error, 1)
			go func() { stopped <- stopWithin(tasks, tt.within) }()
			synctest.Wait()
			_, err := tasks.Submit("second", nil)
			wantEqual(t, "Submit while Stop waits", err, ErrNotAccepting)
			wantEqual(t, "Stop", <-stopped, nil)
			wantEqual(t, "the tasks", statesOf(wait(t, tasks, running), wait(t, tasks, queued)), tt.want)
			wantEqual(t, "running tasks", tasks.Counts()[Running], 0)
			wantEqual(t, "cut off", context.Cause(tasks.jobs[running].ctx) == ErrStopped, cutOff)
			_, err = tasks.Cancel(queued)
			wantEqual(t, "Cancel", err, tt.cancel)
			again, last := stopWithin(tasks, 40*time.Second), tasks.Stop(t.Context())
			if errors.Is(again, context.DeadlineExceeded) != cutOff || last != nil {
				t.Errorf("the second Stop returned %v and the third %v; cut off: %t", again, last, cutOff)
			}
			wantEqual(t, "the tasks at the end", statesOf(wait(t, tasks, running), wait(t, tasks, queued)), tt.want)
			wantCount(t, lines.String(), fmt.Sprintf(`running=1 queued=1 queue_kept=%t`, tt.journal != ""), 1)
			wantCount(t, lines.String(), fmt.Sprintf(tt.log, running, queued), 1)
			wantCount(t, lines.String(), " ids=", strings.Count(tt.log, " ids="))
			wantCount(t, lines.String(), "level=ERROR", 0)
			if tt.journal != "" && tasks.journal.Close() == nil {
				t.Error("the journal was still open")
			}
		})
	}
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

func TestJournalKeepsWhatWasAcknowledged(t *testing.T) {
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
			path = journalOf(t, read(t, path)) // as after a crash: what the old tasks do from now on is not in it
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

func TestJournalCountsTheAttempts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		path := journalOf(t)
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 2, Log: log}, path)
		submit(t, tasks, "second", "")
		submit(t, tasks, "second", "")
		synctest.Wait()
		for n, want := range []string{
			"queued 1 0, running 2 0.5", // newest first; both were running before the crash
			"queued 0 0, running 1 0.5", // after a graceful shutdown; all others after a crash
			"queued 0 0, running 2 0.5",
			"queued 0 0, running 3 0.5",
			"running 1 0.5, failed 3 0 " + string(errorText(ErrCrashed)),
		} {
			if n == 1 {
				wantEqual(t, "Stop", stopWithin(tasks, 0), nil)
			}
			path = journalOf(t, read(t, path)) // as after a crash
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

func TestJournalIsReadAfterACrashOrAChange(t *testing.T) {
	gone := "failed 1 0 " + string(errorText(ErrKindGone))
	const done, torn, again = "succeeded 1 1 1", `level=WARN msg="dropped an incomplete line`, `tasks=1 requeued=1`
	for name, tt := range map[string]struct{ text, want, log string }{
		"the start of a line":          {lineQueued + "\n{", done, torn},
		"half a line in the id":        {lineQueued + "\n" + `{"id":"aaaaa`, done, torn},
		"a line but for the line feed": {lineQueued + "\n" + lineSucceeded, done, again}, // nobody was told of it
		"zeros":                        {lineQueued + "\n" + strings.Repeat("\x00", 4096), done, torn},
		"what was on the disk before":  {lineQueued + "\n" + `{"name": "x"}`, done, torn},
		"its Check would refuse it":    {strings.Replace(lineQueued, "echo", "refuse", 1) + "\n", done, again},
		"its kind is gone":             {strings.Replace(lineQueued, "echo", "nope", 1) + "\n", gone, again},
	} {
		bubble(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Log: log}, journalOf(t, tt.text))
			wantEqual(t, name, statesOf(wait(t, tasks, "aaaaaaaa-1")), tt.want)
			wantCount(t, lines.String(), tt.log, 1)
		})
	}
}

// TestJournalLineCountsWithItsLineFeed: a task that was refused at any byte of its line is not there at the next start.
func TestJournalLineCountsWithItsLineFeed(t *testing.T) {
	for n := range len(lineQueued) + 1 {
		tasks := NewTasks(Config{Log: discard})
		fatalIf(t, tasks.openJournal(journalOf(t, lineQueued[:n])))
		wantEqual(t, "the tasks of "+lineQueued[:n], len(tasks.List("", 9)), 0)
		fatalIf(t, tasks.journal.Close())
	}
}

// TestShutdownThatIsKilledIsNotACrash: docker kills a program ten seconds after SIGTERM.
func TestShutdownThatIsKilledIsNotACrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		path := journalOf(t)
		submit(t, startTasks(t, Config{}, path), "second", "")
		for range 5 {
			synctest.Wait()
			path = journalOf(t, read(t, path)) // as after a kill
			tasks := startTasks(t, Config{}, path)
			synctest.Wait()
			go stopWithin(tasks, time.Minute)
		}
		synctest.Wait()
		tasks := startTasks(t, Config{}, journalOf(t, read(t, path)))
		wantEqual(t, "the task", statesOf(wait(t, tasks, tasks.List("", 1)[0].ID)), "succeeded 1 1 null")
	})
}

func TestJournalThatCannotBeUsedStaysUntouched(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(lineQueued, old, new, 1) }
	blocked := journalOf(t, lineQueued, "")
	fatalIf(t, os.MkdirAll(blocked+".new/full", 0o700)) // the new file's name is taken
	for path, want := range map[string]string{
		journalOf(t, "{", lineQueued, ""):                          ":1: ", // half a line that is not the last
		journalOf(t, lineQueued, "", lineSucceeded, ""):            ":2: ", // an empty line
		journalOf(t, replace("aaaaaaaa-1", ""), ""):                ":1: ", // no id
		journalOf(t, lineQueued, replace("queued", "paused")+"\n"): ":2: ", // an unknown state
		journalOf(t, replace("input", "inpuu"), ""):                ":1: ", // a damaged name
		journalOf(t, lineQueued+lineQueued, ""):                    ":1: ", // two values in one line
		journalOf(t, lineSucceeded, lineQueued, ""):                ":2: ", // a finished task is queued again
		journalOf(t, "\x00\x00"):                                   ":1: ", // nothing shows that it is a journal
		journalOf(t, `{"id":"customer-1","name":"x"}`):             ":1: ", // some other file, named by mistake
		journalOf(t, `{"ID": "customer-1", "name": "x`):            ":1: ",
		journalOf(t) + "/tasks.jsonl":                              "open the journal: ",
		blocked:                                                    "compact the journal: ",
		t.TempDir():                                                "is not a regular file",
	} {
		before, _ := os.ReadFile(path)
		err := NewTasks(Config{Log: discard}).Start(path)
		after, _ := os.ReadFile(path)
		if err == nil || !strings.Contains(err.Error(), want) || !bytes.Equal(before, after) {
			t.Errorf("%q: got %v, want %s; now the file is %q", brief(string(before)), err, want, brief(string(after)))
		}
	}
}

func TestJournalIsNoPipe(t *testing.T) {
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

// TestJournalIsAFileOfItsOwn checks that others can't read the journal, neither in place nor through a link at the
// new file's name.
func TestJournalIsAFileOfItsOwn(t *testing.T) {
	path, link, victim := journalOf(t), journalOf(t), journalOf(t, "mine") // path does not exist yet, as on a new volume
	if err := errors.Join(os.Symlink(path, link), os.Symlink(victim, path+".new")); err != nil {
		t.Skip(err)
	}
	bubble(t, func(t *testing.T) {
		submit(t, startTasks(t, Config{}, link), "echo", "")
		synctest.Wait()
	})
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Fatalf("the journal is %v, %v, want a file with mode 0600", info, err)
	}
	wantCount(t, read(t, path), "\n", 3) // and not in a file that replaced the link
	wantEqual(t, "the other file", read(t, victim), "mine")
}

// TestJournalThatFailsEndsTheAcceptance simulates a disk that fills up in mid-line. Cancel notices, then a task that
// finishes.
func TestJournalThatFailsEndsTheAcceptance(t *testing.T) {
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
		want := "queued 0 0, succeeded 1 1 null, succeeded 1 1 null"
		wantEqual(t, "the tasks", statesOf(tasks.List("", 9)...), want)
		wantCount(t, lines.String(), said, 1)
		wantCount(t, lines.String(), "will run it again", 2)
		if err := stopWithin(tasks, 0); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Stop returned %v, want %v", err, os.ErrClosed)
		}
		wantEqual(t, "the file", read(t, path), full)

		tasks = startTasks(t, Config{Workers: 2, Log: log}, path)
		time.Sleep(time.Minute)
		want = "succeeded 1 1 null, succeeded 2 1 null, succeeded 2 1 null"
		wantEqual(t, "the tasks after the next start", statesOf(tasks.List("", 9)...), want)
		submit(t, tasks, "second", "")
		synctest.Wait()
		tasks.journal.Close()
		tasks.workers.Wait() // both the one that runs the task and the idle one
		wantEqual(t, "ready", tasks.Ready(), false)
		wantCount(t, lines.String(), said, 2)
	})
}

// FuzzJournal checks that any bytes lead either to an error and an unchanged file, or to a start that loses no
// complete line, and that a second start agrees with.
func FuzzJournal(f *testing.F) {
	f.Add(strings.Replace(lineSucceeded, "-1", "-2", 1) + "\n" + lineQueued + "\n" + lineSucceeded + "\n" + `{"id":"aa`)
	odd := strings.NewReplacer(`"attempt":0,"progress":0,"input":1`, `"attempt":-9223372036854775808,"progress":-1e308,"input":null`)
	f.Add(odd.Replace(lineQueued) + "\n")
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

func BenchmarkTasks(b *testing.B) {
	for _, n := range []int{10, 1_000_000} {
		tasks := NewTasks(Config{Kinds: testKinds, Keep: n, Log: discard})
		tasks.accepting = true // but there are no workers: only the map is measured
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

// BenchmarkStart reads a journal of a million lines, three per task.
func BenchmarkStart(b *testing.B) {
	var text strings.Builder
	lines := []string{lineQueued, strings.Replace(lineQueued, "queued", "running", 1), lineSucceeded}
	for n := range 1_000_000 {
		fmt.Fprintln(&text, strings.Replace(lines[n%3], "-1", fmt.Sprintf("-%d", n/3+1), 1))
	}
	path := journalOf(b, text.String())
	for b.Loop() {
		f, err := os.Open(path)
		fatalIf(b, errors.Join(err, NewTasks(Config{Log: discard}).replay(f), f.Close()))
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

// get returns the response's status, with ", close" if the connection is to be closed, or the
// error.
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
// time they have.
func TestLifecycleRunsItsStepsInOrder(t *testing.T) {
	const early, late = 1500 * time.Millisecond, time.Minute
	const served = "start a, start b, start c, request (ready), drain b in 10s, drain a in 9s, stop b in 5s, stop a in 4s"
	for _, tt := range []struct {
		name   string
		signal time.Duration // when it arrives; early: while b starts
		fails  map[string]error
		diary  string
		err    string
	}{
		{"all is well", late, nil, served, "<nil>"},
		{"all drains and stops fail", late,
			map[string]error{"drain b": io.EOF, "drain a": io.EOF, "stop b": io.EOF, "stop a": io.EOF},
			served, "drain b: EOF\ndrain a: EOF\nstop b: EOF\nstop a: EOF"},
		{"a start fails, and a stop", late, map[string]error{"start b": io.EOF, "stop a": io.EOF},
			"start a, start b, stop a in 5s", "start b: EOF\nstop a: EOF"},
		{"a signal during a start that gives up", early, map[string]error{"start b": io.EOF},
			"start a, start b, interrupted, stop a in 5s", "<nil>"},
		{"a signal during a start that succeeds", early, nil,
			"start a, start b, interrupted, stop b in 5s, stop a in 4s", "<nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
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
						return tt.fails[name]
					}
				}
				l.Add(Hook{"a", step("start a"), step("drain a"), step("stop a")})
				l.Add(Hook{"b", step("start b"), step("drain b"), step("stop b")})
				l.Add(Hook{Name: "c", Start: step("start c")})
				s := newStage(t, l, &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
					step("request")(t.Context())
				})})
				go s.get()
				time.Sleep(tt.signal)
				synctest.Wait()
				s.stop()
				wantEqual(t, "the error", fmt.Sprint(<-s.ended), tt.err)
				wantEqual(t, "the steps", strings.Join(diary, ", "), tt.diary)
				wantEqual(t, "the listener is closed", s.closed.Err() != nil, true)
			})
		})
	}
}

// TestShutdownWaitsForClients checks that the server keeps answering until then, and asks its clients to leave.
func TestShutdownWaitsForClients(t *testing.T) {
	const s, hour = time.Second, time.Hour
	for _, tt := range []struct {
		name                  string
		linger, drain, signal time.Duration // signal: time from the request to the signal
		request               time.Duration // how long the request takes; -1: it panics
		more                  bool          // until the end, a request comes every half second
		lasts                 time.Duration // the shutdown
		reply                 string
		err                   error
	}{
		{"nobody came lately", 2 * s, 0, 2 * s, 0, false, 0, "200 OK", nil},
		{"a handler has panicked", 2 * s, 0, 2 * s, -1, false, 0, "EOF", nil},
		{"somebody came just now", 2 * s, 0, 1 * s, 0, false, 2 * s, "200 OK", nil},
		{"somebody came, and the drain takes a while", 2 * s, 4 * s, 1 * s, 0, false, 6 * s, "200 OK", nil},
		{"clients keep coming", 2 * s, 4 * s, 1 * s, 0, true, 8 * s, "200 OK", nil},
		{"clients keep coming, without a linger", 0, 0, 1 * s, 0, false, 0, "200 OK", nil},
		{"a linger of more than half of what is left", hour, 4 * s, 1 * s, 0, true, 17 * s, "200 OK", nil},
		{"a request in flight that ends within the linger", 2 * s, 0, 0, 1 * s, false, 4 * s, "200 OK", nil},
		{"a request in flight that ends within the grace", 2 * s, 0, 0, 15 * s, false, 15 * s, "200 OK, close", nil},
		{"a request in flight that takes longer", 2 * s, 0, 0, hour, false, 20 * s, "EOF", context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
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
					wantEqual(t, fmt.Sprint("a request ", time.Since(begin), " after the signal"), s.get(), "200 OK, close")
					time.Sleep(500 * time.Millisecond)
				}
				err, took, got := <-s.ended, time.Since(begin), <-reply
				// Shutdown checks every half second whether the last request has ended.
				if got != tt.reply || took < tt.lasts || took > tt.lasts+time.Second || !errors.Is(err, tt.err) {
					t.Errorf("got %s after a shutdown of %v: %v; want %s, %v: %v", got, took, err, tt.reply, tt.lasts, tt.err)
				}
				time.Sleep(tt.request) // until the handler that was cut off returns
			})
		})
	}
}

// TestShutdownWaitsForSilentConnections: each may still send its request, until it is five seconds old.
func TestShutdownWaitsForSilentConnections(t *testing.T) {
	for _, tt := range []struct {
		request string
		after   time.Duration // from the signal, to the request
		reply   string
		lasts   time.Duration // the shutdown
	}{
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2 * time.Second, "HTTP/1.1 200", 2 * time.Second},
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 3900 * time.Millisecond, "HTTP/1.1 200", 3900 * time.Millisecond},
		{"GET / HTTP/1.1\r\n", 0, "", 4 * time.Second}, // half a header is silence, too
	} {
		bubble(t, func(t *testing.T) {
			l := &Lifecycle{Log: discard, Grace: 20 * time.Second}
			states := make(chan http.ConnState, 9)
			s := newStage(t, l, &http.Server{
				Handler:   http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
				ConnState: func(_ net.Conn, state http.ConnState) { states <- state },
			})
			conn, err := s.Dial(t.Context(), "", "")
			fatalIf(t, err)
			defer conn.Close()
			time.Sleep(time.Second)
			begin := time.Now()
			s.stop()
			time.Sleep(tt.after)
			go io.WriteString(conn, tt.request)
			reply, _ := io.ReadAll(conn)
			err = <-s.ended
			took := time.Since(begin)
			if !strings.HasPrefix(string(reply), tt.reply) || took < tt.lasts || took > tt.lasts+time.Second || err != nil {
				t.Errorf("%q %v after the signal: got %q after %v: %v; want %q after %v",
					tt.request, tt.after, reply, took, err, tt.reply, tt.lasts)
			}
			wantEqual(t, "the first state that the server's own hook saw", <-states, http.StateNew)
		})
	}
}

// TestLifecycleReportsAListenerThatFailsInTheShutdown, before Run closes it.
func TestLifecycleReportsAListenerThatFailsInTheShutdown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		l := &Lifecycle{Log: discard, Grace: time.Minute}
		var s *stage
		l.Add(Hook{Drain: func(context.Context) error { s.Close(); synctest.Wait(); return nil }})
		s = newStage(t, l, &http.Server{})
		synctest.Wait()
		s.stop()
		if err := <-s.ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want %v", err, net.ErrClosed)
		}
	})
}

// TestLifecycleEndsWhenItsListenerBreaks expects the usual order and every error, of a zero Lifecycle.
func TestLifecycleEndsWhenItsListenerBreaks(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var lines logBuffer
		defer log.SetOutput(log.Writer())
		log.SetOutput(&lines) // what slog.Default writes to
		l := &Lifecycle{}
		l.Add(Hook{Stop: func(context.Context) error { return io.EOF }})
		s := newStage(t, l, &http.Server{})
		reply := s.get()
		s.Close()
		err := <-s.ended
		if reply != "404 Not Found" || !errors.Is(err, net.ErrClosed) || !errors.Is(err, io.EOF) {
			t.Errorf("got %s and %v; want http.DefaultServeMux's 404, %v and the hook's EOF", reply, err, net.ErrClosed)
		}
		if got := lines.String(); !strings.Contains(got, `cause="use of closed`) || strings.Contains(got, "INFO stopped") {
			t.Errorf("the log is %q", got)
		}
	})
}

// ---- main.go

func init() { program = main }

// newTestApp returns the app, with one worker and a queue of ten, and its handler. Its Start hooks have run, as
// Lifecycle.Run runs them; its Stop hooks run at the end of the test.
func newTestApp(t testing.TB, log *slog.Logger) (*app, http.Handler) {
	t.Helper()
	a := newApp(config{workers: 1, queue: 10, keep: 10}, log)
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

// defaultArgs names every file flag, so that no test opens a file of the user's whose name is a flag's default.
func defaultArgs(addr string) []string { return []string{"-addr", addr, "-journal=", "-items="} }

var roomy = config{workers: 1, queue: 100, keep: 100, grace: 20 * time.Second, linger: 2 * time.Second}

// appStage runs the app's own server in a bubble.
func appStage(t *testing.T, c config, log *slog.Logger) (*app, *stage) {
	a := newApp(c, log)
	s := newStage(t, a.lifecycle, a.server())
	synctest.Wait()
	return a, s
}

// remote is a handler that forwards to a server, for do and post. Without a response it answers a 502 that
// says why.
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

func TestAppAnswersAsItsTableSays(t *testing.T) {
	_, h := newTestApp(t, discard)
	for _, tt := range []struct {
		request string // method, path, body
		want    string // the status and the body, or a redirect's Location, or a problem's detail
	}{
		{`GET /`, `307 /docs`},
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
	} {
		part := append(strings.SplitN(tt.request, " ", 3), "")
		w := do(h, part[0], part[1], part[2], "Content-Type", "application/json", "Sec-Fetch-Site", "same-origin")
		got := cmp.Or(w.Header().Get("Location"), strings.TrimSpace(w.Body.String()))
		if w.Code >= 400 {
			got = problemOf(t, w).Detail
		}
		if got = fmt.Sprint(w.Code, " ", got); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.request, brief(got), tt.want)
		}
		changes := w.Code >= 400 || strings.HasPrefix(part[1], "/tasks") || strings.HasSuffix(part[1], "z")
		if cache := w.Header().Get("Cache-Control"); (cache == "no-store") != changes {
			t.Errorf("%s: Cache-Control is %q", tt.request, cache)
		}
	}
	foreign := problemOf(t, do(h, "POST", "/tasks", "", "Sec-Fetch-Site", "cross-site"))
	wantEqual(t, "a cross-origin request", foreign.Status, 403)
	told := regexp.MustCompile(`"summary":"Home".*"summary":"Docs".*"example":"{\\"kind\\": \\"sleep\\"`)
	page := do(h, "GET", "/docs", "").Body.String()
	wantEqual(t, "/docs has the summaries and the example", told.MatchString(page), true)
}

// TestTasksOverHTTP makes the lecture's comparison: answer at once and poll, or wait.
func TestTasksOverHTTP(t *testing.T) {
	bubble(t, func(t *testing.T) {
		_, h := newTestApp(t, discard)
		begin := time.Now()
		check := func(want string, w *httptest.ResponseRecorder) Task {
			t.Helper()
			task, retry, applied := taskOf(t, w.Code, w), w.Header().Get("Retry-After"), w.Header().Get("Preference-Applied")
			got := fmt.Sprintf("%d %s %v after %v, Retry-After %q, applied %q",
				w.Code, task.Status, task.Progress, time.Since(begin).Round(time.Millisecond), retry, applied)
			wantEqual(t, "the reply", got, want)
			return task
		}
		w := post(h, `{"kind":"sleep"}`)
		target := "/tasks/" + check(`202 queued 0 after 0s, Retry-After "1", applied ""`, w).ID
		wantEqual(t, "the Location", w.Header().Get("Location"), target)
		time.Sleep(1510 * time.Millisecond)
		check(`200 running 0.5 after 1.51s, Retry-After "1", applied ""`, do(h, "GET", target, ""))
		check(`200 succeeded 1 after 3s, Retry-After "", applied "wait=5"`, do(h, "GET", target, "", "Prefer", "wait=5"))
		check(`200 succeeded 1 after 6s, Retry-After "", applied "wait=5"`, post(h, `{"kind":"sleep"}`, "Prefer", "wait=5"))
		w = post(h, `{"kind":"sleep"}`, "Prefer", "wait=1")
		target = "/tasks/" + check(`202 running 0.33 after 7s, Retry-After "1", applied "wait=1"`, w).ID
		w = do(h, "DELETE", target, "")
		problem := string(check(`200 canceled 0.33 after 7s, Retry-After "", applied ""`, w).Error)
		const want = `{"type":"about:blank","title":"Conflict","status":409,"detail":"the task was canceled"}`
		wantEqual(t, "the error of the canceled task", problem, want)
		list := do(h, "GET", "/tasks?status=canceled", "").Body.String()
		wantEqual(t, "the canceled tasks", list, "["+strings.TrimSpace(w.Body.String())+"]\n")
	})
}

// TestRefusalForNowSaysWhenToComeBack checks a full queue and a server that is not ready.
func TestRefusalForNowSaysWhenToComeBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		check := func(want string, w *httptest.ResponseRecorder) {
			t.Helper()
			p, retry := problemOf(t, w), w.Header().Get("Retry-After")
			wantEqual(t, "the reply", fmt.Sprintf("%d %s, Retry-After %q", p.Status, p.Detail, retry), want)
		}
		for range 11 { // one is running, and ten are waiting
			submit(t, a.tasks, "sleep", "")
			synctest.Wait()
		}
		check(`503 the queue is full, Retry-After "1"`, post(h, `{"kind":"sleep"}`))
		const notReady = `503 not ready: stopping, or the journal can't be written, Retry-After "1"`
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
	for want, err := range map[string]error{
		`404 "no such task" ""`:                                          ErrNotFound,
		`410 "the task is no longer available" ""`:                       ErrGone,
		`409 "the task has already finished" ""`:                         ErrFinished,
		`409 "the task was canceled" ""`:                                 ErrCanceled,
		`503 "the queue is full" "1"`:                                    ErrQueueFull,
		`503 "no tasks are being accepted" "1"`:                          fmt.Errorf("%w: %w", ErrNotAccepting, secret),
		`503 "the server stopped before the task finished" "1"`:          ErrStopped,
		`500 "the server crashed three times while running the task" ""`: ErrCrashed,
		`500 "the server no longer has this kind of task" ""`:            fmt.Errorf("%w: %w", ErrKindGone, secret),
		`422 "body.input must be JSON that is not nested too deeply" ""`: ErrBadInput,
		`502 "the next one is busy" ""`:                                  Errorf(502, "the next one is busy").Because(ErrQueueFull),
		`404 "아이템 <5>" ""`:                                               Errorf(404, "아이템 <5>").Because(secret),
		`500 "" ""`:                                                      secret,
	} {
		var problem Problem
		json.Unmarshal(a.taskProblem(err), &problem)
		mapped := a.taskError(err)
		retry := do(Observe(discard, fail(mapped)), "GET", "/", "").Header().Get("Retry-After")
		wantEqual(t, err.Error(), fmt.Sprintf("%d %q %q", problem.Status, problem.Detail, retry), want)
		wantEqual(t, err.Error()+": the log has the cause", errors.Is(mapped, secret), errors.Is(err, secret))
	}
	listed := regexp.MustCompile(`^422 body\.kind must be one of .+, sleep`)
	if got := a.taskError(ErrUnknownKind).Error(); !listed.MatchString(got) {
		t.Errorf("unknown kind: got %s, want the kinds listed in order", got)
	}
}

// TestKinds checks that an input that Check rejects also fails in Run, where an older version's journal can
// bring it.
func TestKinds(t *testing.T) {
	const badTime = "422 body.input.wait_time must be between 1 and 10"
	const badN = "422 body.input.n must be between 2 and 50000000"
	for _, tt := range []struct{ kind, input, want string }{ // what Check returns, what Run returns, and the last progress
		{"sleep", ``, `{"wait_time":3}; "task done after 3"; 1`},
		{"sleep", `{"wait_time":1}`, `{"wait_time":1}; "task done after 1"; 1`},
		{"sleep", `{"wait_time":10}`, `{"wait_time":10}; "task done after 10"; 1`},
		{"sleep", `{"wait_time":5}`, `{"wait_time":5}; the task was canceled; 0`},
		{"sleep", `{"wait_time":0}`, badTime + "; " + badTime + "; 0"},
		{"sleep", `{"wait_time":11}`, badTime + "; " + badTime + "; 0"},
		{"primes", `{"n":1}`, badN + "; " + badN + "; 0"},
		{"primes", `{"n":50000001}`, badN + "; " + badN + "; 0"},
		{"primes", `{"n":2}`, `{"n":2}; {"primes":1}; 0`},
		{"primes", `{"n":9}`, `{"n":9}; {"primes":4}; 0`},
		{"primes", `{"n":100000}`, `{"n":100000}; {"primes":9592}; 0.99328`},
		{"primes", `{"n":50000000}`, `{"n":50000000}; the task was canceled; 0`},
	} {
		bubble(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if strings.Contains(tt.want, "canceled") {
				cancel(ErrCanceled)
			}
			outcome := func(v any, err error) any {
				encoded, _ := encode(v)
				return cmp.Or[any](err, string(encoded))
			}
			k, input, progress := (&app{}).kinds()[tt.kind], json.RawMessage(tt.input), 0.0
			checked := outcome(k.Check(input))
			ran := outcome(k.Run(ctx, Task{Input: input}, func(p float64) { progress = p }))
			wantEqual(t, tt.kind+" "+tt.input, fmt.Sprintf("%v; %v; %v", checked, ran, progress), tt.want)
		})
	}
}

// TestRunThatFailsSaysWhy checks the line above the usage, or the line in the log.
func TestRunThatFailsSaysWhy(t *testing.T) {
	ln, err := net.Listen("tcp", "localhost:0")
	fatalIf(t, err)
	defer ln.Close()
	const usage = "\nUsage of plainapi:"
	const failed = "1 (.*\n)*.* level=ERROR .*" // an earlier hook may have logged something
	const badGrace = "2 -grace must be positive, and -linger must not be negative" + usage
	for _, tt := range []struct{ args, want string }{ // a path may have spaces; the exit code and the output, a regexp
		{"-nope", "2 flag provided but not defined: -nope" + usage},
		{"-addr=", "2 -addr must not be empty" + usage},
		{"-workers 0", "2 -workers must be between 1 and 1000" + usage},
		{"-workers 1001", "2 -workers must be between 1 and 1000" + usage},
		{"-queue 0", "2 -queue and -keep must be at least 1" + usage},
		{"-keep 0", "2 -queue and -keep must be at least 1" + usage},
		{"-grace 0s", badGrace},
		{"-linger -1s", badGrace},
		{"-log xml", `2 -log must be text or json, not "xml"` + usage},
		{"start", `2 unexpected argument "start"` + usage},
		{"-h", "0 " + usage[1:]},
		{"-addr " + ln.Addr().String(), "1 .* level=ERROR .* -addr"},
		{"-items nope.json", failed + "start items: "},
		{"-items " + journalOf(t, `{"one": 1}`), failed + `start items: .*\.jsonl: `},
		{"-items " + journalOf(t, "null"), failed + "start items: "},
		{"-journal " + journalOf(t, "damaged", ""), failed + "start tasks: "},
		{"-items=nope.json -log=json", `1 {.*"level":"ERROR"`},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second) // so that a server that starts by mistake stops
		defer cancel()
		var log logBuffer
		code := run(ctx, append(defaultArgs("localhost:0"), strings.SplitN(tt.args, " ", 2)...), &log)
		if got := fmt.Sprint(code, " ", log.String()); !regexp.MustCompile("^" + tt.want).MatchString(got) {
			t.Errorf("%s: got %s\nwant %s", tt.args, brief(got), tt.want)
		}
	}
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

// startProcess runs the test binary as the program and returns once it is listening. It is killed at the end of the
// test.
func startProcess(t testing.TB, args ...string) *testProcess {
	t.Helper()
	p := &testProcess{exited: make(chan struct{})}
	p.Cmd = exec.Command(os.Args[0], append(defaultArgs("127.0.0.1:0"), args...)...)
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

// end sends a signal, waits for the program to exit, and returns its exit code, or -1 if the signal
// killed it.
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
	if code := p.end(syscall.SIGTERM); code != -1 {
		t.Errorf("exit code %d, want -1: killed by the signal; the log is\n%s", code, brief(p.log.String()))
	}
}

// TestStopGoesOnWhenNobodyReadsTheLog: Ctrl-C also kills the tee in "2>&1 | tee log.txt".
func TestStopGoesOnWhenNobodyReadsTheLog(t *testing.T) {
	signalsWork(t)
	p := startProcess(t)
	p.stderr.Close()
	wantEqual(t, "the exit code", p.end(syscall.SIGTERM), 0)
}

// TestStopLosesNoRequest sends SIGTERM while ten clients use keep-alive connections and a task runs.
func TestStopLosesNoRequest(t *testing.T) {
	signalsWork(t)
	p := startProcess(t, "-linger", "300ms", "-items", journalOf(t, `{"7": "seven"}`))
	taskOf(t, 202, post(p, `{"kind":"sleep","input":{"wait_time":1}}`))
	wantEqual(t, "the item from the file", do(p, "GET", "/v2/7", "").Body.String(), "\"seven\"\n")
	wantEqual(t, "the status of one of the lecture's items", do(p, "GET", "/v2/1", "").Code, 404)
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
				if err != nil {
					if !errors.Is(err, syscall.ECONNREFUSED) { // for a new connection, once the server is gone
						t.Errorf("a client lost a request: %v", err)
					}
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.Close {
					return
				}
			}
		})
	}
	<-busy
	wantEqual(t, "the exit code", p.end(syscall.SIGTERM), 0)
	clients.Wait()
	const listening = `url=http://127\.0\.0\.1:\d+/docs\n`
	const draining = `"draining; a second signal ends the program at once" cause="terminated signal received" grace=20s\n`
	const served = `served requests=[1-9]\d+ queued=0 running=0 succeeded=1 failed=0 canceled=0\n`
	want := "(?s)" + listening + ".*" + draining + ".*" + served + ".*stopped\n$"
	if log := p.log.String(); !regexp.MustCompile(want).MatchString(log) {
		t.Errorf("the log doesn't match %s; it ends with\n%s", want, log[max(0, len(log)-600):])
	}
}

// TestKillLosesNoAcknowledgedTask repeatedly kills the program while it accepts tasks, then asks the last run for all
// of them.
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
	for _, tt := range []struct{ client, request, want string }{
		{"sends a large header", get + "X: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", `"HTTP/1.1 431" after 0s`},
		{"sends half a header", get, `"" after 5s`},
		{"sends half a body", post + "Content-Length: 100\r\n\r\n{", `"HTTP/1.1 408" after 15s`},
		{"stays idle", get + "\r\n", `"HTTP/1.1 200" after 1m15s`},
		{"does not read", get + "\r\n", `"" after 30s`},
	} {
		bubble(t, func(t *testing.T) {
			_, s := appStage(t, roomy, discard)
			conn, err := s.Dial(t.Context(), "", "")
			fatalIf(t, err)
			defer conn.Close()
			begin := time.Now()
			go io.WriteString(conn, tt.request)
			if tt.client == "does not read" {
				time.Sleep(30*time.Second + time.Second/2) // by then the connection is closed
			}
			reply, _ := io.ReadAll(conn)
			got := fmt.Sprintf("%.12q after %v", reply, time.Since(begin).Truncate(time.Second))
			wantEqual(t, "a client that "+tt.client, got, tt.want)
		})
	}
}

// TestWaitingPoll checks that a poll outlives the server's timeouts, ends when its client leaves, gets its result
// during the drain, and ends with the server.
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
		if !strings.Contains(lines.String(), "status=499") {
			t.Errorf("no 499 in the log of a client that left: %s", brief(lines.String()))
		}
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

// TestPollSetsItsWriteDeadlineAfterTheWait: if the machine stood still meanwhile, the deadline from before is over.
func TestPollSetsItsWriteDeadlineAfterTheWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		r := httptest.NewRequest("GET", "/tasks/"+submit(t, a.tasks, "sleep", `{"wait_time":3}`).ID, nil)
		r.Header.Set("Prefer", "wait=30")
		w := &deadlined{ResponseRecorder: httptest.NewRecorder()}
		h.ServeHTTP(w, r)
		wantEqual(t, "the time to write", time.Until(w.deadline), writeTimeout)
	})
}

// TestFlood races submissions, cancels, lists and polls: every task must finish exactly once.
func TestFlood(t *testing.T) {
	a := newApp(config{workers: 2, queue: 10, keep: 10}, discard)
	h := a.handler()
	fatalIf(t, a.tasks.Start(""))
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
				request := []string{"DELETE /tasks/" + task.ID, "GET /tasks/" + task.ID, "GET /tasks"}[n%3]
				method, target, _ := strings.Cut(request, " ")
				if w := do(h, method, target, "", "Prefer", "wait=5"); !slices.Contains([]int{200, 409, 410}, w.Code) {
					t.Errorf("%s: got %d %s", request, w.Code, brief(w.Body.String()))
					return
				}
			}
		})
	}
	clients.Wait()
	fatalIf(t, a.tasks.Stop(t.Context()))
	counts := a.tasks.Counts()
	if got := counts[Succeeded] + counts[Canceled]; int64(got) != accepted.Load() || len(a.tasks.jobs) > 10 {
		t.Errorf("%d tasks were accepted and became %v; %d are kept, want at most 10", accepted.Load(), counts, len(a.tasks.jobs))
	}
}

// BenchmarkHandler measures everything around a handler: the log line, the id, recovery, routing.
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

// BenchmarkGetWhileTasksRun measures the lecture's promise: requests stay fast while tasks compute. The server has its
// own process, since the client would otherwise compete with the tasks; try GOMAXPROCS=1 too. Compare the percentiles of
// busy with those of idle.
func BenchmarkGetWhileTasksRun(b *testing.B) {
	p := startProcess(b)
	measure := func(b *testing.B) {
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
	}
	b.Run("idle", measure)
	for range 100 {
		taskOf(b, 202, post(p, `{"kind":"primes","input":{"n":50000000}}`))
	}
	b.Run("busy", measure)
}
