package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
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
)

// TestMain lets the test binary be the program itself, for the tests that need a process to kill.
func TestMain(m *testing.M) {
	if os.Getenv("PLAINAPI_RUN") != "" {
		main()
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

// problemOf checks that a reply is a whole problem (RFC 9457), and returns it.
func problemOf(t *testing.T, w *httptest.ResponseRecorder) (p Problem) {
	t.Helper()
	if got := w.Header().Get("Content-Type"); got != "application/problem+json" {
		t.Errorf("status %d has Content-Type %q, want application/problem+json", w.Code, got)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("status %d has body %q: %v", w.Code, w.Body, err)
	}
	if p.Status != w.Code || p.Title != http.StatusText(w.Code) || p.Type != "about:blank" {
		t.Errorf("the problem of a %d is %+v", w.Code, p)
	}
	if p.RequestID == "" || p.RequestID != w.Header().Get("X-Request-Id") {
		t.Errorf("the problem's request_id is %q, the header's %q", p.RequestID, w.Header().Get("X-Request-Id"))
	}
	return p
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

// ---- router.go

// echo answers with the pattern and the path values that reached it.
func echo(names ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Pattern)
		for _, name := range names {
			fmt.Fprintf(w, " %s=%s", name, r.PathValue(name))
		}
	})
}

func exampleRouter() *Router {
	root := NewRouter("")
	root.Get("/top", echo())

	users := NewRouter("/users")
	users.Get("/", echo())
	users.Get("/{username}", echo("username"))
	users.Post("/{username}", echo("username"))
	users.Get("/404", http.NotFoundHandler())
	root.Include(users)

	moreUsers := NewRouter("/users")
	moreUsers.Delete("/{username}", echo("username"))
	moreUsers.Get("/{username}/files/{path...}", echo("username", "path"))
	root.Include(moreUsers)

	bare := NewRouter("/bare")
	bare.Get("", echo())
	bare.Post("", echo())
	bare.Get("/{id}", echo("id"))
	root.Include(bare)

	tenants := NewRouter("/t/{tenant}")
	items := NewRouter("/items")
	items.Get("/", echo("tenant"))
	items.Get("/{id}", echo("tenant", "id"))
	tenants.Include(items)
	root.Include(tenants)

	flat := NewRouter("")
	flat.Get("/flat", echo())
	root.Include(flat)

	files := NewRouter("/files")
	files.Get("/{path...}", echo("path"))
	root.Include(files)
	end := NewRouter("/end")
	end.Get("/{$}", echo())
	end.Post("/x", echo())
	root.Include(end)

	deep := NewRouter("/a")
	deep.Get("/b/special", echo()) // under the prefix of another router
	b := NewRouter("/b")
	c := NewRouter("/c")
	c.Get("/{x}", echo("x"))
	b.Include(c)
	deep.Include(b)
	root.Include(deep)
	root.Include(c) // a second time, at /c
	b.Get("/late", echo())
	return root
}

func TestRouterReachesTheRightFunction(t *testing.T) {
	h := exampleRouter().Handler()
	for _, tt := range []struct{ method, target, want string }{
		{"GET", "/top", "GET /top"},
		{"GET", "/flat", "GET /flat"},
		{"GET", "/users/", "GET /users/{$}"},
		{"GET", "/users/Rick", "GET /users/{username} username=Rick"},
		{"POST", "/users/Rick", "POST /users/{username} username=Rick"},
		{"DELETE", "/users/Rick", "DELETE /users/{username} username=Rick"},
		{"GET", "/users/Rick/files/a/b", "GET /users/{username}/files/{path...} username=Rick path=a/b"},
		{"GET", "/users/a%2Fb", "GET /users/{username} username=a/b"},
		{"GET", "/users/a%252Fb", "GET /users/{username} username=a%2Fb"},
		{"GET", "/users/a%20b", "GET /users/{username} username=a b"},
		{"GET", "/users/%EB%B3%80%EC%84%B1%EC%9C%A4", "GET /users/{username} username=변성윤"},
		{"GET", "/users/%F0%9F%91%8B", "GET /users/{username} username=👋"},
		{"GET", "/bare", "GET /bare"},
		{"POST", "/bare", "POST /bare"},
		{"GET", "/bare/7", "GET /bare/{id} id=7"},
		{"GET", "/t/acme/items/", "GET /t/{tenant}/items/{$} tenant=acme"},
		{"GET", "/t/a%2Fc/items/7", "GET /t/{tenant}/items/{id} tenant=a/c id=7"},
		{"GET", "/a/b/c/1", "GET /a/b/c/{x} x=1"},
		{"GET", "/c/1", "GET /c/{x} x=1"},
		{"GET", "/a/b/late", "GET /a/b/late"},
		{"GET", "/a/b/special", "GET /a/b/special"},
	} {
		w := do(h, tt.method, tt.target, "")
		if w.Code != 200 || w.Body.String() != tt.want {
			t.Errorf("%s %s: got %d %q, want %q", tt.method, tt.target, w.Code, w.Body, tt.want)
		}
	}
}

func TestRouterAnswersWhatNoRouteFits(t *testing.T) {
	root := exampleRouter()
	root.NoMatch = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := 404
		if w.Header().Get("Allow") != "" {
			status = 405
		}
		w.WriteHeader(status)
		io.WriteString(w, "house format, pattern "+strconv.Quote(r.Pattern))
	})
	h := root.Handler()
	withContext := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(r.Context()))
	})
	for _, tt := range []struct {
		method, target string
		status         int
		allow          string
	}{
		{"GET", "/", 404, ""},
		{"GET", "/nope", 404, ""},
		{"DELETE", "/top", 405, "GET, HEAD"},
		{"DELETE", "/users/", 405, "GET, HEAD"},
		{"PUT", "/users/Rick", 405, "DELETE, GET, HEAD, POST"},
		{"GET", "/users/Rick/", 404, ""},
		{"GET", "/users/a/b", 404, ""},
		{"POST", "/users/Rick/files/x", 405, "GET, HEAD"},
		{"DELETE", "/bare", 405, "GET, HEAD, POST"},
		{"PUT", "/bare", 405, "GET, HEAD, POST"},
		{"OPTIONS", "/bare", 405, "GET, HEAD, POST"},
		{"GET", "/bare/", 404, ""},
		{"POST", "/bare/7", 405, "GET, HEAD"},
		{"GET", "/t/acme", 404, ""},
		{"POST", "/t/acme/items/7", 405, "GET, HEAD"},
		{"GET", "/t/acme/orders/7", 404, ""},
		{"GET", "/a", 404, ""},
		{"GET", "/a/b", 404, ""},
		{"GET", "/a/b/c", 404, ""},
		{"POST", "/a/b/c/1", 405, "GET, HEAD"},
		{"POST", "/a/b/special", 405, "GET, HEAD"},
		{"PUT", "/c/1", 405, "GET, HEAD"},
		{"CONNECT", "/top", 405, "GET, HEAD"},
		{"PUT", "/users", 405, "GET, HEAD"},
		{"POST", "/users", 405, "GET, HEAD"},
		{"PUT", "/files", 405, "GET, HEAD"},
		{"PUT", "/end", 405, "GET, HEAD"},
	} {
		for name, h := range map[string]http.Handler{"": h, " behind WithContext": withContext} {
			w := do(h, tt.method, tt.target, "")
			if w.Code != tt.status || w.Header().Get("Allow") != tt.allow || w.Body.String() != `house format, pattern ""` {
				t.Errorf("%s %s%s: got %d, Allow %q, body %q; want %d, Allow %q", tt.method, tt.target, name,
					w.Code, w.Header().Get("Allow"), w.Body, tt.status, tt.allow)
			}
		}
	}
}

func TestRouterAnswersATargetThatIsNoPath(t *testing.T) {
	root := exampleRouter()
	root.NoMatch = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) })
	r := httptest.NewRequest("GET", "/", nil)
	r.RequestURI, r.URL.Path = "*", "*"
	w := httptest.NewRecorder()
	root.Handler().ServeHTTP(w, r)
	if w.Code != 404 {
		t.Errorf("GET *: got %d, want 404", w.Code)
	}
}

func TestRouterLeavesAHandlersOwn404Alone(t *testing.T) {
	root := exampleRouter()
	root.NoMatch = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("NoMatch was called") })
	if w := do(root.Handler(), "GET", "/users/404", ""); w.Code != 404 || w.Body.String() != "404 page not found\n" {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}

func TestRouterWithoutNoMatchAnswersInPlainText(t *testing.T) {
	w := do(exampleRouter().Handler(), "DELETE", "/top", "")
	if w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" || w.Body.String() != "Method Not Allowed\n" {
		t.Errorf("got %d, Allow %q, %q", w.Code, w.Header().Get("Allow"), w.Body)
	}
}

func TestRouterRedirectsToTheSlash(t *testing.T) {
	h := exampleRouter().Handler()
	for _, tt := range []struct{ method, target, want string }{
		{"GET", "/users", "/users/"},
		{"GET", "/users?a=1&b=%20", "/users/?a=1&b=%20"},
		{"GET", "/files?a=1", "/files/?a=1"},
		{"GET", "/end?a=1", "/end/?a=1"},
		{"GET", "/t/acme/items?a=1", "/t/acme/items/?a=1"},
		{"GET", "/users/../top", "/top"},
		{"GET", "//evil.example/users", "/evil.example/users"},
	} {
		w := do(h, tt.method, tt.target, "")
		if w.Code != 307 || w.Header().Get("Location") != tt.want {
			t.Errorf("%s %s: got %d to %q, want 307 to %q", tt.method, tt.target, w.Code, w.Header().Get("Location"), tt.want)
		}
	}
}

func TestRouterAnswersHEADWhereverGETWorks(t *testing.T) {
	srv := httptest.NewServer(exampleRouter().Handler())
	defer srv.Close()
	for _, path := range []string{"/top", "/users/", "/users/Rick", "/bare", "/t/acme/items/7", "/a/b/c/1"} {
		resp, err := http.Head(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 || resp.ContentLength <= 0 || len(body) != 0 || err != nil {
			t.Errorf("HEAD %s: got %s, Content-Length %d, %d bytes, %v", path, resp.Status, resp.ContentLength, len(body), err)
		}
	}
}

// TestRouterTakesWhatServeMuxTakes: tables that look alike but do not conflict.
func TestRouterTakesWhatServeMuxTakes(t *testing.T) {
	for _, tt := range []struct{ name, routes, method, target, want string }{
		{"a catch-all beside a prefix", " GET /{file...}; /users GET /{id}", "GET", "/app.js", "GET /{file...}"},
		{"a prefix beside a catch-all", " GET /{file...}; /users GET /{id}", "GET", "/users/7", "GET /users/{id}"},
		{"a prefix below a wildcard", "/users DELETE /{id}; /users DELETE /me; /users/me GET /posts", "DELETE", "/users/me", "DELETE /users/me"},
		{"a wildcard prefix beside one", "/users/{id} DELETE ; /users/{id} GET /posts; /users DELETE /me; /users/me GET /posts", "GET", "/users/me/posts", "GET /users/me/posts"},
		{"HEAD of its own", " HEAD /x; /a GET /x", "HEAD", "/a/x", "GET /a/x"},
		{"HEAD of a wildcard beside a prefix", " HEAD /{x}; /users GET /posts", "GET", "/users/posts", "GET /users/posts"},
		{"a redirect beside a wildcard prefix", "/users GET /; /{tenant} GET /items", "GET", "/users", `<a href="/users/">Temporary Redirect</a>.` + "\n\n"},
		{"a wildcard beside a prefix, below it", " GET /{user}/settings; /v1 GET /items", "GET", "/rick/settings", "GET /{user}/settings"},
		{"a prefix beside a wildcard", " GET /{user}/settings; /v1 GET /items", "GET", "/v1/items", "GET /v1/items"},
		{"a method beside a catch-all", " GET /{file...}; /tasks POST ", "POST", "/tasks", "POST /tasks"},
		{"a wildcard that crosses a prefix", " GET /{a}/settings; /users/{id} GET /posts", "GET", "/users/settings", "GET /{a}/settings"},
	} {
		root := NewRouter("")
		for route := range strings.SplitSeq(tt.routes, "; ") {
			part := strings.Split(route, " ")
			rt := NewRouter(part[0])
			rt.Handle(part[1], part[2], echo())
			root.Include(rt)
		}
		if got := do(root.Handler(), tt.method, tt.target, "").Body.String(); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestRouterPrefixesLeaveWildcardsBesideThemAlone: a wildcard at the same level is another route,
// and takes what the prefix has no route for.
func TestRouterPrefixesLeaveWildcardsBesideThemAlone(t *testing.T) {
	root := NewRouter("")
	root.Get("/{page}", echo("page"))
	v1 := NewRouter("/v1")
	v1.Post("", echo())
	v1.Get("/{id}", echo("id"))
	root.Include(v1)
	h := root.Handler()
	for _, tt := range []struct{ method, target, want string }{
		{"GET", "/about", "GET /{page} page=about"},
		{"GET", "/v1", "GET /{page} page=v1"},
		{"POST", "/v1", "POST /v1"},
		{"GET", "/v1/7", "GET /v1/{id} id=7"},
	} {
		if got := do(h, tt.method, tt.target, "").Body.String(); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.method, tt.target, got, tt.want)
		}
	}
}

// TestRouterOfTwoHundredRoutes: every route is reached, and every other method is a 405 that names
// the right ones.
func TestRouterOfTwoHundredRoutes(t *testing.T) {
	root := NewRouter("")
	for i := range 25 {
		rt := NewRouter(fmt.Sprintf("/r%d", i))
		rt.Get("/", echo())
		rt.Get("/{id}", echo())
		rt.Handle("PUT", "/{id}", echo())
		rt.Delete("/{id}", echo())
		sub := NewRouter("/{id}/parts")
		sub.Get("", echo())
		sub.Post("", echo())
		sub.Get("/{part...}", echo())
		sub.Delete("/{part}/last", echo())
		rt.Include(sub)
		root.Include(rt)
	}
	h, wildcard := root.Handler(), regexp.MustCompile(`\{\w+(\.\.\.)?\}`)
	methods := map[string][]string{}
	for _, r := range root.Routes() {
		path := wildcard.ReplaceAllString(r.Path, "x")
		methods[path] = append(methods[path], r.Method)
		if w := do(h, r.Method, path, ""); w.Code != 200 || strings.TrimSuffix(w.Body.String(), "{$}") != r.Method+" "+r.Path {
			t.Errorf("%s %s: got %d %s", r.Method, path, w.Code, w.Body)
		}
	}
	for path, allow := range methods {
		if strings.HasSuffix(path, "/last") {
			allow = append(allow, "GET") // it is below {part...} too
		}
		if slices.Contains(allow, "GET") {
			allow = append(allow, "HEAD")
		}
		slices.Sort(allow)
		if w := do(h, "PATCH", path, ""); w.Code != 405 || w.Header().Get("Allow") != strings.Join(allow, ", ") {
			t.Errorf("PATCH %s: got %d, Allow %q, want %q", path, w.Code, w.Header().Get("Allow"), allow)
		}
	}
}

func TestRouterMiddleware(t *testing.T) {
	var calls []string
	note := func(name string) func(http.Handler) http.Handler {
		return func(next http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				calls = append(calls, name+" "+r.Pattern)
				next.ServeHTTP(w, r)
			})
		}
	}
	root, sub := NewRouter(""), NewRouter("/sub")
	sub.Get("/x", echo())
	sub.Use(note("3"), note("4")) // after the route, and still around it
	root.Use(note("1"))
	root.Use(note("2"))
	root.Get("/y", echo())
	root.Include(sub)
	h := root.Handler()
	for _, tt := range []struct {
		method, target string
		want           []string
	}{
		{"GET", "/sub/x", []string{"1 GET /sub/x", "2 GET /sub/x", "3 GET /sub/x", "4 GET /sub/x"}},
		{"GET", "/y", []string{"1 GET /y", "2 GET /y"}},
		{"GET", "/sub/nope", nil},
		{"POST", "/sub/x", nil},
	} {
		calls = nil
		if do(h, tt.method, tt.target, ""); !slices.Equal(calls, tt.want) {
			t.Errorf("%s %s: got %q, want %q", tt.method, tt.target, calls, tt.want)
		}
	}
}

func readUser(http.ResponseWriter, *http.Request)        {}
func read_user_by_id(http.ResponseWriter, *http.Request) {}

func TestRoutesIsTheWholeTable(t *testing.T) {
	root, outer, inner := NewRouter("", "all"), NewRouter("/outer", "out", "er"), NewRouter("/{in}", "in")
	inner.Get("/", http.HandlerFunc(readUser))
	inner.Handle("PATCH", "", http.HandlerFunc(read_user_by_id)).Example = `{}`
	outer.Include(inner)
	outer.Delete("/x", http.RedirectHandler("/", http.StatusFound)).Summary = "Mine"
	root.Include(outer)
	root.Include(inner)
	root.Post("/closure", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	var got []string
	for _, r := range root.Routes() {
		got = append(got, fmt.Sprintf("%s %s %v %q %s", r.Method, r.Path, r.Tags, r.Summary, r.Example))
	}
	want := []string{
		`POST /closure [all] "" `,
		`DELETE /outer/x [all out er] "Mine" `,
		`GET /outer/{in}/ [all out er in] "Read User" `,
		`PATCH /outer/{in} [all out er in] "Read_user_by_id" {}`,
		`GET /{in}/ [all in] "Read User" `,
		`PATCH /{in} [all in] "Read_user_by_id" {}`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRouterPanicsOnAMistakeAndNamesIt(t *testing.T) {
	with := func(prefix string, fill func(*Router)) func() *Router {
		return func() *Router {
			root, rt := NewRouter(""), NewRouter(prefix)
			fill(rt)
			root.Include(rt)
			return root
		}
	}
	for _, tt := range []struct {
		name, want string
		root       func() *Router
	}{
		{"prefix without a slash", `"users"`, with("users", func(rt *Router) {})},
		{"prefix that ends with a slash", `"/users/"`, with("/users/", func(rt *Router) {})},
		{"prefix of one slash", `"/"`, with("/", func(rt *Router) {})},
		{"path without a slash", "route GET /usersx", with("/users", func(rt *Router) { rt.Get("x", echo()) })},
		{"neither prefix nor path", `"GET "`, with("", func(rt *Router) { rt.Get("", echo()) })},
		{"bad wildcard", `"GET /users/{id"`, with("/users", func(rt *Router) { rt.Get("/{id", echo()) })},
		{"half a wildcard in the prefix", `"GET /{x/"`, with("/{x", func(rt *Router) { rt.Get("/a", echo()) })},
		{"bad wildcard in the prefix", `"GET /{x...}/"`, with("/{x...}", func(rt *Router) { rt.Get("/a", echo()) })},
		{"no method", "route  /users/x", with("/users", func(rt *Router) { rt.Handle("", "/x", echo()) })},
		{"bad method", "route G T /users/x", with("/users", func(rt *Router) { rt.Handle("G T", "/x", echo()) })},
		{"nil handler", "route GET /users/x", with("/users", func(rt *Router) { rt.Get("/x", nil) })},
		{"nil func", "route GET /users/x", with("/users", func(rt *Router) { rt.Get("/x", http.HandlerFunc(nil)) })},
		{"nil middleware", "nil pointer", with("/users", func(rt *Router) { rt.Use(nil); rt.Get("/x", echo()) })},
		{"duplicate", `"GET /users/x"`, with("/users", func(rt *Router) { rt.Get("/x", echo()); rt.Get("/x", echo()) })},
		{"conflict", `"GET /users/a/{y}"`, with("/users", func(rt *Router) { rt.Get("/{x}/b", echo()); rt.Get("/a/{y}", echo()) })},
		{"router included twice at one place", `"GET /users/x"`, with("/users", func(rt *Router) {
			sub := NewRouter("")
			sub.Get("/x", echo())
			rt.Include(sub)
			rt.Include(sub)
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := mustPanic(t, func() { tt.root().Handler() }); !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want it to name %q", got, tt.want)
			}
		})
	}
}

// docsPage returns the page that rt serves, and its policy.
func docsPage(t *testing.T, rt *Router) (html, policy string) {
	t.Helper()
	w := httptest.NewRecorder()
	rt.Docs().ServeHTTP(w, httptest.NewRequest("GET", "/docs", nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("got %d %s, want a page", w.Code, w.Header().Get("Content-Type"))
	}
	return w.Body.String(), w.Header().Get("Content-Security-Policy")
}

// docsTable returns the routes in the page's JSON.
func docsTable(t *testing.T, html string) (routes []Route) {
	t.Helper()
	m := regexp.MustCompile(`(?s)<script type="application/json"[^>]*>(.*?)</script>`).FindStringSubmatch(html)
	if m == nil {
		t.Fatal("the page has no JSON in it")
	}
	if err := json.Unmarshal([]byte(m[1]), &routes); err != nil {
		t.Fatal(err)
	}
	return routes
}

func TestDocsListsEveryRoute(t *testing.T) {
	root := (&app{}).routes()
	html, _ := docsPage(t, root)
	type row struct {
		method, path, summary, example string
		tags                           []string
	}
	rows := func(routes []Route) (rows []row) {
		for _, r := range routes {
			rows = append(rows, row{r.Method, r.Path, r.Summary, r.Example, r.Tags})
		}
		return rows
	}
	listed, registered := rows(docsTable(t, html)), rows(root.Routes())
	for _, r := range registered {
		if !slices.ContainsFunc(listed, func(l row) bool { return reflect.DeepEqual(l, r) }) {
			t.Errorf("%s %s is not in the page as %+v", r.method, r.path, r)
		}
		if r.summary == "" {
			t.Errorf("%s %s has no summary", r.method, r.path)
		}
	}
	for _, l := range listed {
		if !slices.ContainsFunc(registered, func(r row) bool { return reflect.DeepEqual(l, r) }) {
			t.Errorf("the page lists %+v, which is no route", l)
		}
	}
	if !reflect.DeepEqual(listed, registered) {
		t.Errorf("the page lists the routes in another order: %+v", listed)
	}
}

func TestDocsListsRoutesRegisteredLater(t *testing.T) {
	rt := NewRouter("")
	rt.Get("/docs", rt.Docs())
	docs := rt.Handler() // takes the routes there are, as the page does, when it is first asked
	rt.Get("/later", http.NotFoundHandler())
	w := httptest.NewRecorder()
	docs.ServeHTTP(w, httptest.NewRequest("GET", "/docs", nil))
	if routes := docsTable(t, w.Body.String()); len(routes) != 2 || routes[1].Path != "/later" {
		t.Errorf("the page lists %+v, want /docs and /later", routes)
	}
}

func TestDocsPolicyHashesMatchItsContent(t *testing.T) {
	html, policy := docsPage(t, (&app{}).routes())
	want := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?s)<(script|style)([^>]*)>(.*?)</(?:script|style)>`).FindAllStringSubmatch(html, -1) {
		if strings.Contains(m[2], "application/json") {
			continue // data: it does not run, and needs no hash
		}
		sum := sha256.Sum256([]byte(m[3]))
		want[m[1]+"-src"] = append(want[m[1]+"-src"], "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
	}
	got := map[string][]string{}
	for directive := range strings.SplitSeq(policy, ";") {
		words := strings.Fields(directive)
		got[words[0]] = words[1:]
	}
	for name, sources := range map[string][]string{
		"default-src": {"'none'"}, "script-src": want["script-src"], "style-src": want["style-src"],
		"connect-src": {"'self'"}, "img-src": {"data:"}, "base-uri": {"'none'"},
		"form-action": {"'none'"}, "frame-ancestors": {"'none'"},
	} {
		if len(sources) != 1 || !slices.Equal(got[name], sources) {
			t.Errorf("%s is %v, want %v", name, got[name], sources)
		}
		delete(got, name)
	}
	if len(got) > 0 || strings.Contains(policy, "unsafe-") {
		t.Errorf("the policy allows more: %s", policy)
	}
	// What the policy would block must not be there to begin with.
	if m := regexp.MustCompile(`<[^>]*\s(on[a-z]+|style|src)=|innerHTML|https?://`).FindString(html); m != "" {
		t.Errorf("the page holds %q", m)
	}
}

func TestDocsTableCannotBreakOut(t *testing.T) {
	plain, _ := docsPage(t, NewRouter(""))
	const example = `</script><script>alert(1)</script><!--<script>`
	rt := NewRouter("", "</script>")
	route := rt.Post("/", http.NotFoundHandler())
	route.Example, route.Summary = example, example
	html, _ := docsPage(t, rt)
	for _, s := range []string{"<script", "</script", "<!--"} {
		if got, want := strings.Count(html, s), strings.Count(plain, s); got != want {
			t.Errorf("%s is in the page %d times, want %d", s, got, want)
		}
	}
	if routes := docsTable(t, html); len(routes) != 1 || routes[0].Example != example {
		t.Errorf("the table is %+v, want the example as it was", routes)
	}
}

func ExampleRouter() {
	read := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: %s", r.Pattern, r.PathValue("username"))
	}
	users := NewRouter("/users", "users")
	users.Get("/{username}", http.HandlerFunc(read))

	orders := NewRouter("/orders", "orders")
	orders.Get("/me", http.HandlerFunc(read))

	app := NewRouter("")
	app.Include(users)
	app.Include(orders)
	for _, route := range app.Routes() {
		fmt.Println(route.Method, route.Path, route.Tags)
	}

	w := httptest.NewRecorder()
	app.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/users/Rick", nil))
	fmt.Println(w.Body)
	// Output:
	// GET /users/{username} [users]
	// GET /orders/me [orders]
	// GET /users/{username}: Rick
}

// nested is how sub-routers are usually made of ServeMuxes.
func nested(prefix string, routes map[string]http.Handler) http.Handler {
	root, sub := http.NewServeMux(), http.NewServeMux()
	for pattern, h := range routes {
		sub.Handle(pattern, h)
	}
	root.Handle(prefix+"/", http.StripPrefix(prefix, sub))
	return root
}

func BenchmarkRouter(b *testing.B) {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	users, root := NewRouter("/users"), NewRouter("")
	users.Get("/{username}", ok)
	root.Include(users)
	flat := http.NewServeMux()
	flat.Handle("GET /users/{username}", ok)
	for _, bb := range []struct {
		name string
		h    http.Handler
	}{
		{"Router", root.Handler()},
		{"StripPrefix", nested("/users", map[string]http.Handler{"GET /{username}": ok})},
		{"one ServeMux", flat},
	} {
		b.Run(bb.name, func(b *testing.B) { benchmarkHandler(b, bb.h) })
	}
}

// nullWriter is a ResponseWriter that does nothing.
type nullWriter struct{ header http.Header }

func (w nullWriter) Header() http.Header         { return w.header }
func (w nullWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w nullWriter) WriteHeader(int)             {}

func benchmarkHandler(b *testing.B, h http.Handler) {
	b.ReportAllocs()
	r := httptest.NewRequest("GET", "/users/Rick", nil)
	w := nullWriter{http.Header{}}
	for b.Loop() {
		clear(w.header)
		h.ServeHTTP(w, r)
	}
}

// ---- errors.go

// observe serves one request with an endpoint, and returns the reply and the log.
func observe(method, target, body string, e Endpoint, header ...string) (*httptest.ResponseRecorder, string) {
	log, lines := newLog()
	w := do(Observe(log, e), method, target, body, header...)
	return w, lines.String()
}

func fail(err error) Endpoint {
	return func(http.ResponseWriter, *http.Request) error { return err }
}

func TestErrorsBecomeReplies(t *testing.T) {
	secret := errors.New("dial tcp 10.0.0.7: secret")
	for _, tt := range []struct {
		name   string
		err    error
		status int
		detail string
		level  string
	}{
		{"HTTPError", Errorf(404, "no item %d", 5), 404, "no item 5", "INFO"},
		{"with a cause", Errorf(409, "taken").Because(secret), 409, "taken", "INFO"},
		{"wrapped", fmt.Errorf("find: %w", Errorf(403, "not yours").Because(secret)), 403, "not yours", "INFO"},
		{"5xx", Errorf(503, "later").Because(secret), 503, "later", "ERROR"},
		{"any other error", secret, 500, "", "ERROR"},
		{"too large", fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 9}), 413, "the body is larger than 9 bytes", "INFO"},
		{"a status that is no error", Errorf(200, "secret"), 500, "", "ERROR"},
		{"a status that does not exist", Errorf(999, "secret"), 500, "", "ERROR"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, log := observe("GET", "/x", "", fail(tt.err))
			p := problemOf(t, w)
			if w.Code != tt.status || p.Detail != tt.detail {
				t.Errorf("got %d %q, want %d %q", w.Code, p.Detail, tt.status, tt.detail)
			}
			if strings.Contains(w.Body.String(), "secret") {
				t.Errorf("the client is told %q", w.Body)
			}
			if strings.Count(log, "\n") != 1 || !strings.Contains(log, "level="+tt.level) ||
				!strings.Contains(log, "request_id="+p.RequestID) || !strings.Contains(log, tt.err.Error()) {
				t.Errorf("the log is %q, want one line at %s with %q", log, tt.level, tt.err)
			}
		})
	}
}

func TestHTTPErrorKeepsItsCause(t *testing.T) {
	taken := Errorf(409, "taken")
	e := taken.Because(io.EOF)
	if !errors.Is(e, io.EOF) || e.Error() != "409 taken: EOF" {
		t.Errorf("got %q, and its cause is %v", e, errors.Unwrap(e))
	}
	if errors.Unwrap(taken) != nil {
		t.Error("Because changed the error itself, which others may share")
	}
}

func TestErrorReplyHasItsHeadersAndNoneOfTheReplyThatFailed(t *testing.T) {
	busy := Errorf(503, "busy")
	busy.Header = http.Header{"Retry-After": {"7"}}
	w, _ := observe("GET", "/", "", func(w http.ResponseWriter, r *http.Request) error {
		for _, name := range []string{"Content-Length", "Content-Encoding", "Content-Range", "Content-Disposition", "ETag", "Last-Modified"} {
			w.Header().Set(name, "5")
		}
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
		w.Header().Set("Content-Type", "text/csv")
		return busy
	})
	problemOf(t, w)
	var got []string
	for name := range w.Header() {
		got = append(got, name)
	}
	slices.Sort(got)
	if want := []string{"Cache-Control", "Content-Type", "Retry-After", "X-Content-Type-Options", "X-Request-Id"}; !slices.Equal(got, want) {
		t.Errorf("got the headers %q, want %q", got, want)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control is %q, want no-store", got)
	}
}

func TestPanicIsA500WithTheStackInTheLog(t *testing.T) {
	w, log := observe("GET", "/", "", func(http.ResponseWriter, *http.Request) error { panic("secret") })
	if p := problemOf(t, w); w.Code != 500 || p.Detail != "" || strings.Contains(w.Body.String(), "secret") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
	if strings.Count(log, "\n") != 1 || !strings.Contains(log, "level=ERROR") ||
		!strings.Contains(log, `cause="panic: secret"`) || !strings.Contains(log, "main_test.go") {
		t.Errorf("the log is %q", log)
	}
}

// TestReplyThatHasBegunIsAborted: what the client gets must not look whole.
func TestReplyThatHasBegunIsAborted(t *testing.T) {
	for _, tt := range []struct {
		name  string
		begin func(http.ResponseWriter)
		end   func() error
	}{
		{"error after WriteHeader", func(w http.ResponseWriter) { w.WriteHeader(200) }, func() error { return io.EOF }},
		{"error after Write", func(w http.ResponseWriter) { io.WriteString(w, "half") }, func() error { return io.EOF }},
		{"error after Flush", func(w http.ResponseWriter) { http.NewResponseController(w).Flush() }, func() error { return io.EOF }},
		{"panic after Write", func(w http.ResponseWriter) { io.WriteString(w, "half") }, func() error { panic("EOF") }},
		{"own abort", func(w http.ResponseWriter) {}, func() error { panic(http.ErrAbortHandler) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log, lines := newLog()
			logged := make(chan bool)
			h := Observe(log, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
				tt.begin(w)
				return tt.end()
			}))
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(logged)
				h.ServeHTTP(w, r)
			}))
			defer srv.Close()
			resp, err := http.Get(srv.URL)
			if err == nil {
				var body []byte
				body, err = io.ReadAll(resp.Body)
				resp.Body.Close()
				if err == nil {
					t.Errorf("the client got %s %q, and it looks whole", resp.Status, body)
				}
			}
			<-logged
			got := lines.String()
			if tt.name == "own abort" {
				if strings.Count(got, "\n") != 1 {
					t.Errorf("the log is %q, want one line", got)
				}
			} else if strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") || !strings.Contains(got, "EOF") {
				t.Errorf("the log is %q, want one error with its cause", got)
			}
		})
	}
}

func TestInformationalStatusDoesNotBeginTheReply(t *testing.T) {
	srv := httptest.NewServer(Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		w.WriteHeader(http.StatusEarlyHints)
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

func TestClientThatWentAwayIsLoggedAs499(t *testing.T) {
	log, lines := newLog()
	ctx, cancel := context.WithCancel(t.Context())
	h := Observe(log, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		cancel()
		return fmt.Errorf("query: %w", r.Context().Err())
	}))
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	w := httptest.NewRecorder()
	if got := mustPanic(t, func() { h.ServeHTTP(w, r) }); got != http.ErrAbortHandler.Error() {
		t.Errorf("panicked with %q, want http.ErrAbortHandler", got)
	}
	if got := lines.String(); !strings.Contains(got, "level=INFO") || !strings.Contains(got, "status=499") || !strings.Contains(got, "query: context canceled") {
		t.Errorf("the log is %q", got)
	}
	if w.Body.Len() != 0 {
		t.Errorf("the client was sent %q", w.Body)
	}
}

func TestCanceledContextOfTheHandlersOwnIsA500(t *testing.T) {
	w, _ := observe("GET", "/", "", fail(context.Canceled))
	if problemOf(t, w); w.Code != 500 {
		t.Errorf("got %d, want 500", w.Code)
	}
}

func TestLogHasOneLineARequest(t *testing.T) {
	log, lines := newLog()
	mux := http.NewServeMux()
	mux.Handle("GET /users/{username}", Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.WriteString(w, "12345")
		return err
	}))
	mux.Handle("GET /nothing", Endpoint(fail(nil)))
	h := Observe(log, mux)
	do(h, "GET", "/users/a%0Alevel=ERROR%1b%5B2J%22", "", "X-Request-Id", "mine-1")
	do(h, "HEAD", "/users/x", "", "X-Request-Id", "mine-2")
	do(h, "GET", "/nothing", "", "X-Request-Id", "mine-3")
	got := strings.Split(strings.TrimSuffix(lines.String(), "\n"), "\n")
	for i, want := range []string{
		`level=INFO msg=request method=GET path="/users/a\nlevel=ERROR\x1b[2J\"" route=/users/{username} status=200 bytes=5 duration=* request_id=mine-1`,
		`level=INFO msg=request method=HEAD path=/users/x route=/users/{username} status=200 bytes=0 duration=* request_id=mine-2`,
		`level=INFO msg=request method=GET path=/nothing route=/nothing status=200 bytes=0 duration=* request_id=mine-3`,
	} {
		if i >= len(got) {
			t.Fatalf("the log has only %d lines: %q", len(got), got)
		}
		_, line, _ := strings.Cut(got[i], " ") // the time
		before, after, _ := strings.Cut(want, "*")
		if !strings.HasPrefix(line, before) || !strings.HasSuffix(line, after) {
			t.Errorf("line %d is\n%s, want\n%s", i, line, want)
		}
	}
	if len(got) != 3 {
		t.Errorf("got %d lines: %q", len(got), got)
	}
}

func TestRequestID(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, tt := range []struct {
		sent string
		kept bool
	}{
		{"abc", true},
		{"A-z_0.9", true},
		{long, true},
		{long + "x", false},
		{"", false},
		{"a b", false},
		{"a\nb", false},
		{"a\"b", false},
		{"é", false},
		{"<b>", false},
	} {
		w, log := observe("GET", "/", "", fail(nil), "X-Request-Id", tt.sent)
		got := w.Header().Get("X-Request-Id")
		if kept := got == tt.sent; kept != tt.kept || got == "" {
			t.Errorf("%q became %q", tt.sent, got)
		}
		if !strings.Contains(log, "request_id="+got+"\n") {
			t.Errorf("the reply says %q, the log %q", got, log)
		}
	}
	a, _ := observe("GET", "/", "", fail(nil))
	b, _ := observe("GET", "/", "", fail(nil))
	if a.Header().Get("X-Request-Id") == b.Header().Get("X-Request-Id") {
		t.Error("two requests have the same id")
	}
}

func FuzzRequestID(f *testing.F) {
	for _, seed := range []string{"abc", "", "a b", "a\r\nSet-Cookie: x", "\x00", strings.Repeat("x", 65), "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, sent string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["X-Request-Id"] = []string{sent}
		got := requestID(r)
		if len(got) < 1 || len(got) > 64 || strings.Trim(got, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
			t.Errorf("%q became %q", sent, got)
		}
	})
}

// wrapped is a ResponseWriter as middleware makes them.
type wrapped struct{ http.ResponseWriter }

func (w wrapped) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func TestEndpointIsObservedBehindAWrappedResponseWriter(t *testing.T) {
	log, lines := newLog()
	w := do(Observe(log, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fail(Errorf(404, "nothing")).ServeHTTP(wrapped{w}, r)
	})), "GET", "/", "")
	if p := problemOf(t, w); p.Status != 404 || strings.Count(lines.String(), "\n") != 1 {
		t.Errorf("got %+v, and the log is %q", p, lines)
	}
}

func TestEndpointWithoutObserveIsObservedAllTheSame(t *testing.T) {
	log, lines := newLog()
	defer slog.SetDefault(slog.Default())
	slog.SetDefault(log)
	if p := problemOf(t, do(fail(Errorf(404, "nothing")), "GET", "/", "")); p.Status != 404 {
		t.Errorf("an Endpoint: got %+v", p)
	}
	if strings.Count(lines.String(), "\n") != 1 {
		t.Errorf("the log is %q, want one line", lines)
	}
}

func TestWriteJSONLeavesTextAsItIs(t *testing.T) {
	w, _ := observe("GET", "/", "", func(w http.ResponseWriter, r *http.Request) error {
		return WriteJSON(w, 201, "<b>&아이템")
	})
	if got := w.Body.String(); w.Code != 201 || got != "\"<b>&아이템\"\n" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("got %d %q as %q", w.Code, got, w.Header().Get("Content-Type"))
	}
}

func TestWriteJSONOfWhatIsNoJSONIsA500(t *testing.T) {
	w, log := observe("GET", "/", "", func(w http.ResponseWriter, r *http.Request) error {
		return WriteJSON(w, 200, math.NaN())
	})
	if p := problemOf(t, w); p.Status != 500 || !strings.Contains(log, "NaN") {
		t.Errorf("got %+v, and the log is %q", p, log)
	}
}

func TestStatusThatDoesNotExistIsA500(t *testing.T) {
	w, log := observe("GET", "/", "", func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, 1000, 1) })
	if p := problemOf(t, w); p.Status != 500 || !strings.Contains(log, "status=500") {
		t.Errorf("got %+v, and the log is %q", p, log)
	}
}

// dullWriter is a ResponseWriter that can't flush.
type dullWriter struct{ http.ResponseWriter }

func TestFlushThatIsNotSupportedDoesNotBeginTheReply(t *testing.T) {
	w := httptest.NewRecorder()
	Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		return http.NewResponseController(w).Flush()
	})).ServeHTTP(dullWriter{w}, httptest.NewRequest("GET", "/", nil))
	if p := problemOf(t, w); p.Status != 500 {
		t.Errorf("got %+v", p)
	}
}

// brokenWriter can't be written to, as a connection that was closed.
type brokenWriter struct{ *httptest.ResponseRecorder }

func (w brokenWriter) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestReplyThatCannotBeWrittenIsInTheLog(t *testing.T) {
	for _, tt := range []struct {
		name string
		e    Endpoint
	}{
		{"a reply", func(w http.ResponseWriter, r *http.Request) error { return WriteJSON(w, 200, "x") }},
		{"an error", fail(Errorf(404, "nothing"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log, lines := newLog()
			h := Observe(log, tt.e)
			func() {
				defer func() { recover() }() // the abort
				h.ServeHTTP(brokenWriter{httptest.NewRecorder()}, httptest.NewRequest("GET", "/", nil))
			}()
			if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "write the reply: broken pipe") {
				t.Errorf("the log is %q", got)
			}
		})
	}
}

type body struct {
	Name  string            `json:"name"`
	Age   int64             `json:"age"`
	Small int8              `json:"small"`
	Score float64           `json:"score"`
	Ok    bool              `json:"ok"`
	List  []string          `json:"list"`
	Map   map[string]string `json:"map"`
	Any   fmt.Stringer      `json:"any"`
	Sub   struct {
		N int `json:"n"`
	} `json:"sub"`
}

func (b *body) Validate() (fields []FieldError) {
	if b.Age < 0 {
		fields = append(fields, FieldError{[]string{"age"}, "must not be negative"})
	}
	if b.Name == "bad" {
		fields = append(fields, FieldError{[]string{"name"}, "must not be bad"})
	}
	return fields
}

func TestReadJSON(t *testing.T) {
	const js = "application/json"
	for _, tt := range []struct {
		name, contentType, body string
		status                  int
		locs                    string
	}{
		{"an object", js, `{"name": "Rick", "age": 70}`, 200, ""},
		{"with a charset", js + "; charset=utf-8", `{}`, 200, ""},
		{"in white space", js, " {} \r\n\t", 200, ""},
		{"no content type", "", `{}`, 415, ""},
		{"a form", "application/x-www-form-urlencoded", `{}`, 415, ""},
		{"a content type that is none", "application/json;;", `{}`, 415, ""},
		{"just small enough", js, `"` + strings.Repeat("x", 1<<20-2) + `"`, 422, "body"},
		{"too large", js, `"` + strings.Repeat("x", 1<<20) + `"`, 413, ""},
		{"nothing", js, ``, 400, ""},
		{"half an object", js, `{"name":`, 400, ""},
		{"no JSON", js, `{name: 1}`, 400, ""},
		{"two values", js, `{} {}`, 400, ""},
		{"trailing garbage", js, `{}x`, 400, ""},
		{"a NUL", js, "{}\x00", 400, ""},
		{"not UTF-8", js, "{\"name\": \"\xff\"}", 400, ""},
		{"too deep", js, strings.Repeat("[", 100_000), 400, ""},
		{"null", js, ` null `, 422, "body"},
		{"an array", js, `[]`, 422, "body"},
		{"a string", js, `"x"`, 422, "body"},
		{"an unknown field", js, `{"nme": "Rick"}`, 422, "body.nme"},
		{"an unknown field of any length", js, `{"` + strings.Repeat("한", 10000) + `": 1}`, 422, "body." + strings.Repeat("한", 64)},
		{"a string of the wrong type", js, `{"name": 1}`, 422, "body.name"},
		{"an integer of the wrong type", js, `{"age": "1"}`, 422, "body.age"},
		{"an integer with a fraction", js, `{"age": 1.5}`, 422, "body.age"},
		{"an integer too large", js, `{"age": 9223372036854775808}`, 422, "body.age"},
		{"an integer too large for its field", js, `{"small": 128}`, 422, "body.small"},
		{"a number of the wrong type", js, `{"score": true}`, 422, "body.score"},
		{"a number too large", js, `{"score": 1e999}`, 422, "body.score"},
		{"a boolean of the wrong type", js, `{"ok": 1}`, 422, "body.ok"},
		{"an array of the wrong type", js, `{"list": {}}`, 422, "body.list"},
		{"an object of the wrong type", js, `{"map": []}`, 422, "body.map"},
		{"the wrong type inside", js, `{"sub": {"n": "x"}}`, 422, "body.sub.n"},
		{"all that is at fault", js, `{"age": -1, "name": "bad"}`, 422, "body.age body.name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, _ := observe("POST", "/", tt.body, func(w http.ResponseWriter, r *http.Request) error {
				return ReadJSON(w, r, new(body))
			}, "Content-Type", tt.contentType)
			if w.Code != tt.status {
				t.Fatalf("got %d %s, want %d", w.Code, w.Body, tt.status)
			}
			if w.Code == 200 {
				return
			}
			p := problemOf(t, w)
			var locs []string
			for _, f := range p.Errors {
				locs = append(locs, strings.Join(f.Loc, "."))
			}
			if got := strings.Join(locs, " "); got != tt.locs {
				t.Errorf("at fault: got %q, want %q", got, tt.locs)
			}
			for _, internal := range []string{"json:", "Go ", "int64", "main.", "struct", "invalid character"} {
				if strings.Contains(w.Body.String(), internal) {
					t.Errorf("the client is told %q: %s", internal, w.Body)
				}
			}
		})
	}
}

func TestReadJSONSaysWhatTheTypeShouldBe(t *testing.T) {
	for in, want := range map[string]string{
		`{"name": 1}`:           "body.name must be a string",
		`{"age": "x"}`:          "body.age must be an integer, and not too large",
		`{"score": 0, "ok": 0}`: "body.ok must be true or false",
		`{"any": {}}`:           "body.any must be of another type",
		`{"list": 0}`:           "body.list must be an array",
		`{"sub": 0}`:            "body.sub must be an object",
		`{"score": []}`:         "body.score must be a number",
	} {
		if err := DecodeJSON([]byte(in), new(body), "body"); err == nil || err.Error() != "422 "+want {
			t.Errorf("%s: got %v, want %s", in, err, want)
		}
	}
}

var alwaysWrong = []FieldError{{[]string{"n"}, "is wrong"}}

type wrong struct{}

func (wrong) Validate() []FieldError { return alwaysWrong }

func TestDecodeJSONLeavesTheErrorsOfValidateAlone(t *testing.T) {
	for range 2 {
		if err := DecodeJSON([]byte("{}"), new(wrong), "body"); err == nil || err.Error() != "422 body.n is wrong" {
			t.Errorf("got %v", err)
		}
	}
}

// failingBody fails as a connection does.
type failingBody struct{ err error }

func (b failingBody) Read([]byte) (int, error) { return 0, b.err }
func (b failingBody) Close() error             { return nil }

func TestReadJSONOfABodyThatDoesNotArrive(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
	}{
		{os.ErrDeadlineExceeded, 408},
		{io.ErrUnexpectedEOF, 400},
		{errors.New("malformed chunked encoding"), 400},
	} {
		r := httptest.NewRequest("POST", "/", failingBody{tt.err})
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
			return ReadJSON(w, r, new(body))
		})).ServeHTTP(w, r)
		if p := problemOf(t, w); p.Status != tt.status {
			t.Errorf("%v: got %d, want %d", tt.err, p.Status, tt.status)
		}
	}
}

// TestReadJSONDoesNotInviteABodyThatIsTooLarge: with Expect: 100-continue the client waits.
func TestReadJSONDoesNotInviteABodyThatIsTooLarge(t *testing.T) {
	srv := httptest.NewServer(Observe(discard, Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		return ReadJSON(w, r, new(body))
	})))
	defer srv.Close()
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", 1<<20+1)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if line != "HTTP/1.1 413 Request Entity Too Large\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
}

func FuzzDecodeJSON(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, ` null`, `{"name": "Rick", "age": 70, "sub": {"n": 1}}`, `{"nme": 1}`, `{"age": 1e400}`,
		`[[[[`, `{} {}`, "{\"name\": \"\xff\"}", `{"\u0000": 1}`, `{"a\"b": 1}`, `{"list": [1]}`, `"\ud800"`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var v body
		err := DecodeJSON(data, &v, "body")
		if err == nil {
			if e := json.Unmarshal(data, new(body)); e != nil {
				t.Errorf("%q was accepted, but: %v", data, e)
			}
			return
		}
		e, ok := errors.AsType[*HTTPError](err)
		if !ok || e.Status != 400 && e.Status != 422 {
			t.Fatalf("%q: got %v, want a 400 or a 422", data, err)
		}
		if valid := json.Valid(data); e.Status == 422 && (!valid || len(e.Fields) == 0 || e.Fields[0].Loc[0] != "body") {
			t.Errorf("%q: a 422 with %v", data, e.Fields)
		}
		if strings.Contains(e.Detail, "json:") {
			t.Errorf("%q: the client is told %q", data, e.Detail)
		}
	})
}

func TestPathInt(t *testing.T) {
	for in, want := range map[string]string{
		"5": "5", "+5": "5", "-5": "-5", "005": "5", "0": "0",
		"9223372036854775807": "9223372036854775807", "-9223372036854775808": "-9223372036854775808",
		"9223372036854775808": "422", "": "422", "x": "422", "5.0": "422", "5e0": "422", "0x5": "422", "1_000": "422",
		" 5": "422", "5 ": "422", "٥": "422", "--5": "422", "+": "422", "5\x00": "422",
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetPathValue("id", in)
		i, err := PathInt(r, "id")
		got := strconv.FormatInt(i, 10)
		if e, ok := errors.AsType[*HTTPError](err); ok {
			got = strconv.Itoa(e.Status)
			if want := []FieldError{{[]string{"path", "id"}, "must be an integer of at most 64 bits"}}; !reflect.DeepEqual(e.Fields, want) {
				t.Errorf("%q: got the fields %v, want %v", in, e.Fields, want)
			}
		}
		if got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func FuzzPathInt(f *testing.F) {
	for _, seed := range []string{"5", "+5", "-0", "9223372036854775808", "1_0", "0x1", "", "\xff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.SetPathValue("id", in)
		i, err := PathInt(r, "id")
		digits := strings.TrimLeft(strings.TrimPrefix(strings.TrimPrefix(in, "+"), "-"), "0")
		if err == nil && digits != strings.TrimPrefix(strconv.FormatInt(i, 10), "-") && !(i == 0 && digits == "") {
			t.Errorf("%q became %d", in, i)
		}
	})
}

func ExampleErrorf() {
	items := map[int64]string{1: "Boostcamp"}
	find := Endpoint(func(w http.ResponseWriter, r *http.Request) error {
		id, err := PathInt(r, "item_id")
		if err != nil {
			return err
		}
		item, ok := items[id]
		if !ok {
			return Errorf(http.StatusNotFound, "아이템을 찾을 수 없습니다 [id: %d]", id)
		}
		return WriteJSON(w, http.StatusOK, item)
	})
	mux := http.NewServeMux()
	mux.Handle("GET /v2/{item_id}", find)

	r := httptest.NewRequest("GET", "/v2/5", nil)
	r.Header.Set("X-Request-Id", "example")
	w := httptest.NewRecorder()
	Observe(slog.New(slog.DiscardHandler), mux).ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("Content-Type"))
	fmt.Println(w.Body)
	// Output:
	// 404 application/problem+json
	// {"type":"about:blank","title":"Not Found","status":404,"detail":"아이템을 찾을 수 없습니다 [id: 5]","request_id":"example"}
}

// ---- tasks.go

var testKinds = map[string]Kind{
	"echo": {Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
		return input, nil
	}},
	"second": {Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
		progress(0.5)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Second):
			return nil, nil
		}
	}},
	"fail": {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) {
		return nil, errors.New("secret")
	}},
	"panic": {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) { panic("secret") }},
	"deaf": {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) {
		time.Sleep(time.Minute)
		return "late", nil
	}},
	"exit": {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) {
		runtime.Goexit()
		return nil, nil
	}},
	"NaN":  {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) { return math.NaN(), nil }},
	"text": {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) { return "<b>&아이템", nil }},
	"picky": {Check: func(input json.RawMessage) (json.RawMessage, error) {
		if string(input) == "1" {
			return json.RawMessage(`"checked"`), nil
		}
		return nil, errors.New("not 1")
	}, Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
		return input, nil
	}},
}

// startTasks returns tasks that are closed at the end of the test. What c leaves out is roomy.
func startTasks(t *testing.T, c Config, journal string) *Tasks {
	t.Helper()
	if c.Kinds == nil {
		c.Kinds = testKinds
	}
	if c.Log == nil {
		c.Log = discard
	}
	if c.Queue == 0 {
		c.Queue = 100
	}
	if c.Keep == 0 {
		c.Keep = 100
	}
	tasks := NewTasks(c)
	if err := tasks.Start(journal); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(tasks) })
	return tasks
}

// closeNow stops tasks without waiting.
func closeNow(tasks *Tasks) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return tasks.Stop(ctx)
}

func submit(t *testing.T, tasks *Tasks, kind, input string) Task {
	t.Helper()
	task, err := tasks.Submit(kind, json.RawMessage(input))
	if err != nil {
		t.Fatalf("submit %s: %v", kind, err)
	}
	return task
}

func get(t *testing.T, tasks *Tasks, id string) Task {
	t.Helper()
	task, err := tasks.Get(id)
	if err != nil {
		t.Fatalf("get %s: %v", id, err)
	}
	return task
}

func wait(t *testing.T, tasks *Tasks, id string) Task {
	t.Helper()
	task, err := tasks.Wait(t.Context(), id)
	if err != nil {
		t.Fatalf("wait for %s: %v", id, err)
	}
	return task
}

func TestTaskFromQueuedToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		begin := time.Now().UTC()
		first, second := submit(t, tasks, "second", "1"), submit(t, tasks, "second", "2")
		if first.Status != Queued || first.Progress != 0 || !first.CreatedAt.Equal(begin) || string(first.Input) != "1" {
			t.Errorf("submitted: %+v", first)
		}
		synctest.Wait()
		if got := get(t, tasks, first.ID); got.Status != Running || got.Progress != 0.5 || !got.StartedAt.Equal(begin) {
			t.Errorf("the first after a moment: %+v, want running and half done", got)
		}
		if got := get(t, tasks, second.ID); got.Status != Queued || !got.StartedAt.IsZero() {
			t.Errorf("the second after a moment: %+v, want queued", got)
		}
		got := wait(t, tasks, second.ID)
		if got.Status != Succeeded || got.Progress != 1 || string(got.Result) != "null" || got.Error != nil ||
			!got.StartedAt.Equal(begin.Add(time.Second)) || !got.FinishedAt.Equal(begin.Add(2*time.Second)) {
			t.Errorf("the second at its end: %+v", got)
		}
		if first.Status != Queued {
			t.Error("the copy that Submit returned has changed")
		}
	})
}

func TestTaskThatFails(t *testing.T) {
	for kind, cause := range map[string]string{"fail": "cause=secret", "panic": "main_test.go", "NaN": "NaN", "exit": "ended its goroutine"} {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, lines := newLog()
				tasks := startTasks(t, Config{Workers: 1, Log: log}, "")
				id := submit(t, tasks, kind, "").ID
				got := wait(t, tasks, id)
				if got.Status != Failed || got.Result != nil || string(got.Error) != `{"detail":"the task failed"}` {
					t.Errorf("got %+v", got)
				}
				if next := wait(t, tasks, submit(t, tasks, "echo", "1").ID); next.Status != Succeeded {
					t.Errorf("the task after it: %+v", next)
				}
				if got := lines.String(); strings.Count(got, "level=ERROR") != 1 || !strings.Contains(got, cause) || !strings.Contains(got, id) {
					t.Errorf("the log is %q, want one error with %q", got, cause)
				}
			})
		})
	}
}

func TestTaskErrorIsWhatConfigMakesOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1, Error: func(err error) json.RawMessage {
			return json.RawMessage(strconv.Quote("public " + err.Error()))
		}}, "")
		if got := wait(t, tasks, submit(t, tasks, "fail", "").ID); string(got.Error) != `"public secret"` {
			t.Errorf("got %s", got.Error)
		}
	})
}

// TestTaskErrorThatCannotBeMadeFailsThatTaskAlone: Config.Error is the caller's, and may panic.
func TestTaskErrorThatCannotBeMadeFailsThatTaskAlone(t *testing.T) {
	for name, f := range map[string]func(error) json.RawMessage{
		"panics":  func(error) json.RawMessage { panic("secret") },
		"no JSON": func(error) json.RawMessage { return json.RawMessage("{") },
	} {
		synctest.Test(t, func(t *testing.T) {
			tasks := startTasks(t, Config{Workers: 1, Error: f}, journalOf(t))
			if got := wait(t, tasks, submit(t, tasks, "fail", "").ID); string(got.Error) != `{"detail":"the task failed"}` {
				t.Errorf("%s: got %s", name, got.Error)
			}
			if got := wait(t, tasks, submit(t, tasks, "echo", "1").ID); got.Status != Succeeded {
				t.Errorf("%s: the task after it: %+v", name, got)
			}
		})
	}
}

func TestTaskResultLeavesTextAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		if got := wait(t, tasks, submit(t, tasks, "text", "").ID); string(got.Result) != `"<b>&아이템"` {
			t.Errorf("got %s", got.Result)
		}
	})
}

func TestSubmitChecksItsInput(t *testing.T) {
	tasks := startTasks(t, Config{Workers: 1}, "")
	for _, tt := range []struct{ kind, input, want, err string }{
		{"picky", "1", `"checked"`, ""},
		{"picky", "2", "", "not 1"},
		{"echo", "", "null", ""},
		{"echo", "{", "", "unexpected end of JSON input"},
		{"nope", "1", "", ErrUnknownKind.Error()},
	} {
		task, err := tasks.Submit(tt.kind, json.RawMessage(tt.input))
		if tt.err == "" && (err != nil || string(task.Input) != tt.want) || tt.err != "" && (err == nil || err.Error() != tt.err) {
			t.Errorf("%s(%s): got %s, %v; want %s, %s", tt.kind, tt.input, task.Input, err, tt.want, tt.err)
		}
	}
}

func TestSubmitIsRefused(t *testing.T) {
	tasks := NewTasks(Config{Kinds: testKinds})
	if _, err := tasks.Submit("echo", nil); err != ErrNotAccepting || tasks.Ready() {
		t.Errorf("before Start: got %v, want %v", err, ErrNotAccepting)
	}
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1, Queue: 2}, "")
		running := submit(t, tasks, "second", "")
		synctest.Wait()
		queued := submit(t, tasks, "second", "")
		submit(t, tasks, "second", "")
		if _, err := tasks.Submit("second", nil); err != ErrQueueFull {
			t.Errorf("one running, two queued of two: got %v, want %v", err, ErrQueueFull)
		}
		if _, err := tasks.Cancel(queued.ID); err != nil {
			t.Fatal(err)
		}
		submit(t, tasks, "second", "") // in the place of the canceled one
		wait(t, tasks, running.ID)
		synctest.Wait()
		submit(t, tasks, "second", "") // in the place of the one that runs now
	})
}

func TestTasksRunInOrderAndOnlySoManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 3}, "")
		for range 9 {
			submit(t, tasks, "second", "")
		}
		time.Sleep(time.Millisecond)
		for done := 0; done <= 9; done += 3 {
			synctest.Wait()
			counts := tasks.Counts()
			if counts[Succeeded] != done || counts[Running] != min(3, 9-done) {
				t.Errorf("got %v, want %d succeeded", counts, done)
			}
			for i, task := range slices.Backward(tasks.List("", 100)) {
				if n := 8 - i; (task.Status == Succeeded) != (n < done) {
					t.Errorf("with %d done, number %d is %s", done, n, task.Status)
				}
			}
			time.Sleep(time.Second)
		}
	})
}

func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		causes := make(chan error, 1)
		tasks := startTasks(t, Config{Workers: 1, Kinds: map[string]Kind{"stubborn": {
			Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
				<-ctx.Done()
				causes <- context.Cause(ctx)
				progress(0.9)
				return "late", nil
			},
		}}}, "")
		running := submit(t, tasks, "stubborn", "")
		synctest.Wait()
		queued := submit(t, tasks, "stubborn", "")
		for name, id := range map[string]string{"running": running.ID, "queued": queued.ID} {
			for _, again := range []string{"", ", again"} {
				got, err := tasks.Cancel(id)
				if err != nil || got.Status != Canceled || got.Error == nil || got.FinishedAt.IsZero() {
					t.Errorf("cancel a %s task%s: got %+v, %v", name, again, got, err)
				}
			}
			wait(t, tasks, id) // it is over for who waits, whatever Run does
		}
		if cause := <-causes; cause != ErrCanceled {
			t.Errorf("the context of the running task ended with %v, want %v", cause, ErrCanceled)
		}
		synctest.Wait()
		if got := get(t, tasks, running.ID); got.Status != Canceled || got.Result != nil || got.Progress != 0 {
			t.Errorf("what the task did afterwards was not dropped: %+v", got)
		}
		if got := tasks.Counts(); got[Canceled] != 2 || got[Running]+got[Queued]+got[Succeeded] != 0 {
			t.Errorf("got %v, want 2 canceled", got)
		}
	})
}

func TestCancelIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		succeeded, failed := submit(t, tasks, "echo", "1").ID, submit(t, tasks, "fail", "").ID
		wait(t, tasks, succeeded)
		wait(t, tasks, failed)
		for id, want := range map[string]error{succeeded: ErrFinished, failed: ErrFinished, "nope": ErrNotFound} {
			if _, err := tasks.Cancel(id); err != want {
				t.Errorf("got %v, want %v", err, want)
			}
		}
		if got := get(t, tasks, succeeded); got.Status != Succeeded {
			t.Errorf("it was succeeded, and is %s", got.Status)
		}
	})
}

func TestProgressStaysWithin0And1AndNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		next := make(chan float64)
		tasks := startTasks(t, Config{Workers: 1, Kinds: map[string]Kind{"x": {
			Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
				for p := range next {
					progress(p)
				}
				return nil, nil
			},
		}}}, "")
		id := submit(t, tasks, "x", "").ID
		for _, tt := range []struct{ report, want float64 }{
			{0.25, 0.25}, {0.1, 0.25}, {-1, 0.25}, {math.NaN(), 0.25}, {0.5, 0.5}, {7, 1}, {math.Inf(1), 1},
		} {
			next <- tt.report
			synctest.Wait()
			if got := get(t, tasks, id).Progress; got != tt.want {
				t.Errorf("after %v: got %v, want %v", tt.report, got, tt.want)
			}
		}
		close(next)
	})
}

func TestWaitWithAContextThatHasEndedReturnsTheTaskAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		id := submit(t, tasks, "second", "").ID
		if got, err := tasks.Wait(ctx, id); err != nil || got.Status.Finished() {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

func TestSubmitKeepsItsInputWhateverTheCallerDoesWithIt(t *testing.T) {
	tasks := startTasks(t, Config{Workers: 1}, "")
	input := json.RawMessage(`"mine"`)
	task, err := tasks.Submit("echo", input)
	copy(input, `"what"`)
	if got := wait(t, tasks, task.ID); err != nil || string(got.Result) != `"mine"` {
		t.Errorf("got %s, %v", got.Result, err)
	}
}

func TestIDTellsItsOwnStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1, Keep: 2}, "")
		var ids []string
		for range 4 {
			ids = append(ids, submit(t, tasks, "echo", "").ID)
		}
		wait(t, tasks, ids[3])
		run, _, _ := strings.Cut(ids[0], "-")
		for id, want := range map[string]error{
			ids[0]: ErrGone, ids[1]: ErrGone, ids[2]: nil, ids[3]: nil,
			run + "-5":                    ErrNotFound,
			run + "-0":                    ErrNotFound,
			run + "-04":                   ErrNotFound,
			run + "-4x":                   ErrNotFound,
			run + "-99999999999999999999": ErrNotFound,
			"aaaaaaaa-1":                  ErrGone, // of another run
			"aaaaaaaa-999999999999999999": ErrGone,
			"AAAAAAAA-1":                  ErrNotFound,
			run:                           ErrNotFound,
			"":                            ErrNotFound,
		} {
			if _, err := tasks.Get(id); err != want {
				t.Errorf("Get(%q): got %v, want %v", id, err, want)
			}
			if _, err := tasks.Wait(t.Context(), id); err != want {
				t.Errorf("Wait(%q): got %v, want %v", id, err, want)
			}
		}
		if len(tasks.jobs) != 2 || len(tasks.created) > 4 || len(tasks.finished) != 2 {
			t.Errorf("%d tasks are held, want 2", len(tasks.jobs))
		}
		if got := tasks.Counts()[Succeeded]; got != 4 {
			t.Errorf("Counts says %d succeeded, want the forgotten ones too: 4", got)
		}
	})
}

func FuzzTaskID(f *testing.F) {
	for _, seed := range []string{"", "aaaaaaaa-1", "aaaaaaaa-01", "aaaaaaaa-", "-1", "aaaaaaaa-18446744073709551616", "\xff-1"} {
		f.Add(seed)
	}
	tasks := NewTasks(Config{})
	f.Fuzz(func(t *testing.T, id string) {
		_, err := tasks.Get(id)
		run, number, _ := strings.Cut(id, "-")
		n, e := strconv.ParseUint(number, 10, 64)
		given := len(run) == 8 && e == nil && n > 0 && strconv.FormatUint(n, 10) == number && run != tasks.runID
		if err != ErrNotFound && (err != ErrGone || !given) {
			t.Errorf("%q: got %v", id, err)
		}
	})
}

func TestListIsNewestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		for i := range 5 {
			submit(t, tasks, []string{"echo", "fail"}[i%2], strconv.Itoa(i))
		}
		synctest.Wait()
		for _, tt := range []struct {
			status Status
			limit  int
			want   string
		}{
			{"", 100, "4 3 2 1 0"},
			{"", 2, "4 3"},
			{Succeeded, 100, "4 2 0"},
			{Failed, 1, "3"},
			{Running, 100, ""},
		} {
			inputs := []string{}
			for _, task := range tasks.List(tt.status, tt.limit) {
				inputs = append(inputs, string(task.Input))
			}
			if got := strings.Join(inputs, " "); got != tt.want {
				t.Errorf("List(%q, %d): got %s, want %s", tt.status, tt.limit, got, tt.want)
			}
		}
	})
}

func TestDrainRunsTheQueueToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		submit(t, tasks, "second", "")
		last := submit(t, tasks, "second", "")
		drained := make(chan error, 1)
		go func() { drained <- tasks.Stop(t.Context()) }()
		synctest.Wait()
		if _, err := tasks.Submit("second", nil); err != ErrNotAccepting {
			t.Errorf("a submission while draining: got %v, want %v", err, ErrNotAccepting)
		}
		if tasks.Ready() {
			t.Error("it is ready while draining")
		}
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if got := get(t, tasks, last.ID); got.Status != Succeeded {
			t.Errorf("the last in the queue is %s", got.Status)
		}
	})
}

func TestDrainCancelsWhatItCannotWaitFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 1, Log: log, Error: func(err error) json.RawMessage {
			return json.RawMessage(strconv.Quote(err.Error()))
		}}, "")
		running, queued := submit(t, tasks, "second", ""), submit(t, tasks, "second", "")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := tasks.Stop(ctx); err != nil {
			t.Error(err)
		}
		for _, id := range []string{running.ID, queued.ID} {
			if got := get(t, tasks, id); got.Status != Canceled || string(got.Error) != strconv.Quote(ErrStopped.Error()) {
				t.Errorf("got %s %s", got.Status, got.Error)
			}
		}
		if got := lines.String(); !strings.Contains(got, running.ID+" "+queued.ID) {
			t.Errorf("the log does not name them: %q", got)
		}
	})
}

func TestDrainReportsATaskThatIgnoresItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, "")
		id := submit(t, tasks, "deaf", "").ID
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := tasks.Stop(ctx); err != nil {
			t.Errorf("the first call: %v", err)
		}
		if err := tasks.Stop(ctx); err == nil {
			t.Error("the second call: no error")
		}
		if got := get(t, tasks, id); got.Status != Canceled {
			t.Errorf("it is %s", got.Status)
		}
		time.Sleep(time.Minute) // until it has returned after all
	})
}

// ---- the journal of tasks.go

// journalOf returns a path for a journal, with what is in it.
func journalOf(t *testing.T, lines ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tasks.jsonl")
	if lines != nil {
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// crash leaves tasks as a killed program would: nothing is written any more. The workers are
// let go, for the test's sake.
func crash(tasks *Tasks) {
	tasks.mu.Lock()
	tasks.journal.Close()
	tasks.mu.Unlock()
	closeNow(tasks)
}

func TestJournalKeepsWhatWasAcknowledged(t *testing.T) {
	path := journalOf(t)
	var before []Task
	var unfinished []string
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, path)
		for _, id := range []string{
			submit(t, tasks, "echo", `{"x":"<b>"}`).ID, submit(t, tasks, "fail", "1").ID, submit(t, tasks, "panic", "1").ID,
		} {
			before = append(before, wait(t, tasks, id))
		}
		running := submit(t, tasks, "second", "3")
		synctest.Wait()
		canceled := submit(t, tasks, "second", "4")
		queued := submit(t, tasks, "echo", "5")
		if _, err := tasks.Cancel(canceled.ID); err != nil {
			t.Fatal(err)
		}
		before = append(before, get(t, tasks, canceled.ID))
		unfinished = []string{running.ID, queued.ID}
		crash(tasks)
	})
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the journal's mode is %v, want 0600", info.Mode())
	}
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1}, path)
		for _, want := range before {
			if got := get(t, tasks, want.ID); !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		}
		for _, id := range unfinished {
			if got := wait(t, tasks, id); got.Status != Succeeded {
				t.Errorf("the task that had not finished is %+v", got)
			}
		}
		if fresh := submit(t, tasks, "echo", ""); fresh.ID[:8] == before[0].ID[:8] {
			t.Errorf("the new run gives ids of the old one: %s", fresh.ID)
		}
		var order []string
		for _, task := range tasks.List("", 100) {
			order = append(order, string(task.Input))
		}
		if got := strings.Join(order, " "); got != `null 5 4 3 1 1 {"x":"<b>"}` {
			t.Errorf("newest first: got %s", got)
		}
	})
}

func TestJournalFailsATaskThatRanAtThreeCrashesInARow(t *testing.T) {
	path := journalOf(t)
	var suspect, innocent string
	synctest.Test(t, func(t *testing.T) {
		for n := range 3 {
			tasks := startTasks(t, Config{Workers: 1}, path)
			if n == 0 {
				suspect, innocent = submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
			}
			synctest.Wait()
			if got := get(t, tasks, suspect); got.Status != Running {
				t.Fatalf("start %d: it is %s", n, got.Status)
			}
			crash(tasks)
		}
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 1, Log: log, Error: func(err error) json.RawMessage {
			return json.RawMessage(strconv.Quote(err.Error()))
		}}, path)
		if got := get(t, tasks, suspect); got.Status != Failed || string(got.Error) != strconv.Quote(ErrCrashed.Error()) {
			t.Errorf("after three crashes it is %s %s", got.Status, got.Error)
		}
		if got := lines.String(); !strings.Contains(got, suspect) || strings.Contains(got, innocent) {
			t.Errorf("the log is %q", got)
		}
		if got := wait(t, tasks, innocent); got.Status != Succeeded {
			t.Errorf("the one that only waited is %s", got.Status)
		}
	})
}

// TestJournalTakesATaskThatWouldBeRefusedToday: it was accepted by a Check, or a kind, of another day.
func TestJournalTakesATaskThatWouldBeRefusedToday(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		other := strings.Replace(lineQueued, "-1", "-2", 1)
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 1, Log: log, Error: func(err error) json.RawMessage {
			return json.RawMessage(strconv.Quote(err.Error()))
		}}, journalOf(t, strings.Replace(lineQueued, "echo", "picky", 1), strings.Replace(other, "echo", "nope", 1), ""))
		if got := wait(t, tasks, "aaaaaaaa-1"); got.Status != Succeeded || string(got.Result) != "1" {
			t.Errorf("the input that was checked already: got %+v", got)
		}
		if got := wait(t, tasks, "aaaaaaaa-2"); got.Status != Failed || string(got.Error) != strconv.Quote(ErrKindGone.Error()) {
			t.Errorf("the kind that is gone: got %+v", got)
		}
		if got := lines.String(); !strings.Contains(got, `msg="read the journal"`) || !strings.Contains(got, `tasks=2 "run again"=2`) {
			t.Errorf("the log does not say what the journal held: %s", got)
		}
	})
}

func TestJournalCountsCrashesAnewAfterAnOrderlyStop(t *testing.T) {
	path := journalOf(t)
	synctest.Test(t, func(t *testing.T) {
		var id, waiting string
		for n := range 9 {
			tasks := startTasks(t, Config{Workers: 1}, path)
			if n == 0 {
				id, waiting = submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
			}
			synctest.Wait()
			if got := get(t, tasks, id); got.Status != Running {
				t.Fatalf("start %d: it is %s", n, got.Status)
			}
			if n%3 != 2 {
				crash(tasks)
				continue
			}
			if err := closeNow(tasks); err != nil {
				t.Fatal(err)
			}
			for _, id := range []string{id, waiting} {
				if got := get(t, tasks, id); got.Status != Queued || !got.StartedAt.IsZero() || got.Progress != 0 {
					t.Errorf("after the stop it is %+v, want queued again", got)
				}
			}
		}
	})
}

func TestJournalKeepsTheOrderOfCreation(t *testing.T) {
	path := journalOf(t)
	synctest.Test(t, func(t *testing.T) {
		var want []string
		for range 3 {
			tasks := startTasks(t, Config{Workers: 1}, path)
			for range 11 {
				want = append(want, submit(t, tasks, "second", "").ID)
			}
			time.Sleep(2500 * time.Millisecond) // two finish, and get in front of the others in the file
			crash(tasks)
		}
		var got []string
		for _, task := range slices.Backward(startTasks(t, Config{Workers: 1}, path).List("", 100)) {
			got = append(got, task.ID)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got  %v\nwant %v", got, want)
		}
	})
}

func TestJournalKeepsTheQueueAtAnOrderlyStop(t *testing.T) {
	path := journalOf(t)
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		tasks := startTasks(t, Config{Workers: 1, Log: log}, path)
		finishes := submit(t, tasks, "second", "").ID
		queued := submit(t, tasks, "second", "").ID
		synctest.Wait()
		if err := tasks.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		if got := get(t, tasks, finishes); got.Status != Succeeded {
			t.Errorf("the running one is %s, want it to have had its time", got.Status)
		}
		if got := get(t, tasks, queued); got.Status != Queued || !strings.Contains(lines.String(), queued) {
			t.Errorf("the queued one is %s, and the log is %q", got.Status, lines)
		}
		if err := tasks.Stop(t.Context()); err != nil {
			t.Error(err)
		}
		tasks = startTasks(t, Config{Workers: 1}, path)
		if got := wait(t, tasks, queued); got.Status != Succeeded {
			t.Errorf("after the next start it is %s", got.Status)
		}
	})
}

func TestJournalHoldsRetentionAcrossRestarts(t *testing.T) {
	path := journalOf(t)
	synctest.Test(t, func(t *testing.T) {
		tasks := startTasks(t, Config{Workers: 1, Keep: 3}, path)
		var ids []string
		for range 6 {
			ids = append(ids, submit(t, tasks, "echo", "").ID)
		}
		wait(t, tasks, ids[5])
		crash(tasks)
		for _, keep := range []int{3, 2} {
			tasks = startTasks(t, Config{Workers: 1, Keep: keep}, path)
			for i, id := range ids {
				want := error(nil)
				if i < 6-keep {
					want = ErrGone
				}
				if _, err := tasks.Get(id); err != want {
					t.Errorf("keep %d, number %d: got %v, want %v", keep, i, err, want)
				}
			}
			if got := tasks.Counts()[Succeeded]; got != keep {
				t.Errorf("Counts says %d, want %d", got, keep)
			}
			if got := strings.Count(read(t, path), "\n"); got != keep {
				t.Errorf("the file has %d lines, want %d", got, keep)
			}
			crash(tasks)
		}
		tasks = startTasks(t, Config{Workers: 1, Keep: 2}, path)
		wait(t, tasks, submit(t, tasks, "echo", "").ID)
		if _, err := tasks.Get(ids[4]); err != ErrGone {
			t.Errorf("the oldest was not the first to be forgotten: %v", err)
		}
	})
}

const (
	lineQueued    = `{"id":"aaaaaaaa-1","kind":"echo","status":"queued","progress":0,"input":1,"created_at":"2026-01-01T00:00:00Z"}`
	lineSucceeded = `{"id":"aaaaaaaa-1","kind":"echo","status":"succeeded","progress":1,"input":1,"result":1,"created_at":"2026-01-01T00:00:00Z","finished_at":"2026-01-01T00:00:01Z"}`
)

func TestJournalDropsATornLastLine(t *testing.T) {
	for _, torn := range []string{"{", lineSucceeded, `{"id":"aaaaa`} {
		synctest.Test(t, func(t *testing.T) {
			log, lines := newLog()
			tasks := startTasks(t, Config{Workers: 1, Log: log}, journalOf(t, lineQueued, torn))
			if got := wait(t, tasks, "aaaaaaaa-1"); got.Status != Succeeded || got.StartedAt.IsZero() {
				t.Errorf("torn %q: got %+v, want it to have run", torn, got)
			}
			if got := lines.String(); strings.Count(got, "level=WARN") != 1 || !strings.Contains(got, "line=2") {
				t.Errorf("the log is %q, want one warning for line 2", got)
			}
		})
	}
}

func TestJournalRefusesWhatItCouldNotReadBack(t *testing.T) {
	tasks := startTasks(t, Config{Workers: 1}, journalOf(t))
	for _, depth := range []int{10_000, 9_000} {
		_, err := tasks.Submit("echo", json.RawMessage(strings.Repeat("[", depth)+strings.Repeat("]", depth)))
		if (err != nil) != (depth == 10_000) || !tasks.Ready() {
			t.Errorf("%d deep: got %v, ready %v", depth, err, tasks.Ready())
		}
	}
}

func TestJournalStartsBesideTheRestsOfAStartThatWasKilled(t *testing.T) {
	path := journalOf(t, lineSucceeded, "")
	if err := os.WriteFile(path+".new", []byte(`{"id":"half`), 0o644); err != nil {
		t.Fatal(err)
	}
	get(t, startTasks(t, Config{Workers: 1}, path), "aaaaaaaa-1")
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Errorf("the journal's mode is %v, want 0600", info.Mode())
	}
}

func TestJournalBehindALinkStaysWhereItIs(t *testing.T) {
	path, link := journalOf(t), journalOf(t) // neither is there yet, as on a new volume
	if err := os.Symlink(path, link); err != nil {
		t.Skip(err)
	}
	tasks := startTasks(t, Config{Workers: 1}, link)
	wait(t, tasks, submit(t, tasks, "echo", "").ID)
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 || strings.Count(read(t, path), "\n") != 3 {
		t.Errorf("the link became %v, and behind it stands %q", info.Mode(), read(t, path))
	}
}

func TestJournalTakesLinesOfAnyLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path, long := journalOf(t), strconv.Quote(strings.Repeat("x", 1<<20))
		tasks := startTasks(t, Config{Workers: 1}, path)
		id := submit(t, tasks, "echo", long).ID
		wait(t, tasks, id)
		crash(tasks)
		if got := get(t, startTasks(t, Config{Workers: 1}, path), id); string(got.Result) != long {
			t.Errorf("got a result of %d bytes, want %d", len(got.Result), len(long))
		}
	})
}

func TestJournalThatIsDamagedStopsTheStart(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(lineQueued, old, new, 1) }
	for _, tt := range []struct {
		name  string
		lines []string
		line  int
	}{
		{"no JSON", []string{lineQueued, "{", ""}, 2},
		{"an empty line", []string{lineQueued, "", lineSucceeded, ""}, 2},
		{"NULs", []string{"\x00\x00", ""}, 1},
		{"another type", []string{replace(`"echo"`, "5"), ""}, 1},
		{"no id", []string{replace("aaaaaaaa-1", ""), ""}, 1},
		{"unknown state", []string{lineQueued, replace("queued", "paused"), ""}, 2},
		{"no state", []string{replace(`"queued"`, `""`), ""}, 1},
		{"another file, of one line", []string{"my notes"}, 1},
		{"another JSON file, of one line", []string{`{"1":"Boostcamp"}`}, 1},
		{"another JSON file, with an id", []string{`{"id":"mine","name":"x"}`}, 1},
		{"a damaged name", []string{strings.Replace(lineQueued, "input", "inpuu", 1), ""}, 1},
		{"two values in a line", []string{lineQueued + lineQueued, ""}, 1},
		{"NULs at the end", []string{lineQueued, "\x00\x00"}, 2},
		{"no half line at the end", []string{lineQueued, "garbage"}, 2},
		{"goes on after its end", []string{lineSucceeded, lineQueued, ""}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := journalOf(t, tt.lines...)
			before := read(t, path)
			err := NewTasks(Config{Kinds: testKinds, Keep: 10, Log: discard}).Start(path)
			if want := fmt.Sprintf("%s:%d: ", path, tt.line); err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want %s…", err, want)
			}
			if after := read(t, path); after != before {
				t.Errorf("the file was %q and is %q", before, after)
			}
		})
	}
}

func TestJournalThatCannotBeUsedStopsTheStart(t *testing.T) {
	dir := t.TempDir()
	blocked := journalOf(t, lineQueued, "")
	if err := os.MkdirAll(blocked+".new/full", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"no such folder":          filepath.Join(dir, "nope", "tasks.jsonl"),
		"a folder":                dir,
		"a device":                os.DevNull,
		"no room for the new one": blocked,
	} {
		if err := NewTasks(Config{Kinds: testKinds, Log: discard}).Start(path); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if got := read(t, blocked); got != lineQueued+"\n" {
		t.Errorf("the journal became %q", got)
	}
}

// TestJournalThatFailsEndsTheAcceptance: the disk is full after half a line.
func TestJournalThatFailsEndsTheAcceptance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		path := journalOf(t)
		tasks := startTasks(t, Config{Workers: 1, Log: log}, path)
		running, queued := submit(t, tasks, "second", "").ID, submit(t, tasks, "second", "").ID
		synctest.Wait()

		tasks.mu.Lock()
		fmt.Fprint(tasks.journal, `{"id":"half`)
		tasks.journal.Close()
		tasks.mu.Unlock()
		full := read(t, path)

		for range 2 {
			if _, err := tasks.Submit("echo", nil); !errors.Is(err, ErrNotAccepting) || !errors.Is(err, os.ErrClosed) {
				t.Errorf("a submission: got %v, want %v and why", err, ErrNotAccepting)
			}
		}
		if tasks.Ready() {
			t.Error("it is still ready")
		}
		if _, err := tasks.Cancel(queued); !errors.Is(err, ErrNotAccepting) || get(t, tasks, queued).Status != Queued {
			t.Errorf("a cancel that can't be written: got %v", err)
		}
		if got := wait(t, tasks, running); got.Status != Succeeded {
			t.Errorf("the running task is %s, want its result to be shown", got.Status)
		}
		synctest.Wait()
		if got := get(t, tasks, queued); got.Status != Queued {
			t.Errorf("the queued task is %s, want it left for the next start", got.Status)
		}
		if got := lines.String(); !strings.Contains(got, "no task is accepted or started any more") || !strings.Contains(got, "will run it again") {
			t.Errorf("the log is %q", got)
		}
		if err := closeNow(tasks); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Close: got %v, want the reason", err)
		}
		if got := read(t, path); got != full {
			t.Errorf("behind the half line stands %q", strings.TrimPrefix(got, full))
		}

		tasks = startTasks(t, Config{Workers: 1}, path)
		for _, id := range []string{running, queued} {
			if got := wait(t, tasks, id); got.Status != Succeeded {
				t.Errorf("after the next start: %s", got.Status)
			}
		}
	})
}

// FuzzJournal: any bytes end in an error or a start, and before a torn tail no line is lost.
func FuzzJournal(f *testing.F) {
	for _, seed := range [][]string{
		{""}, {lineQueued, ""}, {lineQueued, lineSucceeded, ""}, {lineSucceeded, `{"id":"aa`}, {"{}", ""}, {"null", ""}, {"\x00"},
		{strings.Replace(lineQueued, "queued", "running", 1), ""}, {strings.Replace(lineSucceeded, "-1", "-2", 1), lineQueued, ""},
		{strings.Replace(lineQueued, `"progress":0`, `"progress":-1e308,"crashes":-9223372036854775808`, 1), ""},
		{strings.Replace(lineQueued, "2026", "9999", 1), ""}, {strings.Replace(lineQueued, `"input":1`, `"input":null`, 1), ""},
	} {
		f.Add([]byte(strings.Join(seed, "\n")))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "tasks.jsonl")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		// No worker: Start would run them, so do what it does before.
		tasks := NewTasks(Config{Kinds: testKinds, Keep: 1 << 20, Log: discard})
		if err := tasks.openJournal(path); err != nil {
			if after := read(t, path); after != string(data) {
				t.Errorf("refused with %v, and the file was %q and is %q", err, data, after)
			}
			return
		}
		defer tasks.journal.Close()
		whole := data[:bytes.LastIndexByte(data, '\n')+1]
		want := map[string]bool{}
		for line := range bytes.Lines(whole) {
			var task Task
			if err := json.Unmarshal(line, &task); err != nil {
				t.Fatalf("accepted the line %q: %v", line, err)
			}
			want[task.ID] = true
		}
		if len(tasks.jobs) != len(want) {
			t.Errorf("%d tasks of %d came back from %q", len(tasks.jobs), len(want), data)
		}
		again := NewTasks(Config{Kinds: testKinds, Keep: 1 << 20, Log: discard})
		if err := again.openJournal(path); err != nil {
			t.Fatalf("its own journal is refused: %v: %q", err, read(t, path))
		}
		again.journal.Close()
		if len(again.jobs) != len(want) {
			t.Errorf("%d tasks of %d came back from its own journal", len(again.jobs), len(want))
		}
	})
}

func ExampleTasks() {
	tasks := NewTasks(Config{Workers: 1, Queue: 10, Keep: 10, Log: slog.New(slog.DiscardHandler), Kinds: map[string]Kind{
		"greet": {Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
			var name string
			err := json.Unmarshal(input, &name)
			return "hello " + name, err
		}},
	}})
	if err := tasks.Start(""); err != nil {
		fmt.Println(err)
		return
	}
	defer tasks.Stop(context.Background())

	task, err := tasks.Submit("greet", json.RawMessage(`"Rick"`))
	fmt.Println(task.Status, err)
	task, err = tasks.Wait(context.Background(), task.ID)
	fmt.Println(task.Status, string(task.Result), err)
	// Output:
	// queued <nil>
	// succeeded "hello Rick" <nil>
}

func BenchmarkTasks(b *testing.B) {
	for _, n := range []int{10, 1_000_000} {
		tasks := NewTasks(Config{Kinds: testKinds, Workers: 1, Queue: math.MaxInt, Keep: n, Log: discard})
		tasks.accepting = true // but no worker: what is measured is the map
		for range n {
			task, _ := tasks.Submit("echo", nil)
			tasks.Cancel(task.ID)
		}
		b.Run(fmt.Sprintf("submit and cancel with %d in the map", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				task, _ := tasks.Submit("echo", nil)
				tasks.Cancel(task.ID)
			}
		})
		id := tasks.List("", 1)[0].ID
		b.Run(fmt.Sprintf("get with %d in the map", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tasks.Get(id)
			}
		})
	}
}

// BenchmarkStart is a start with the journal of a million finished tasks, three lines each.
func BenchmarkStart(b *testing.B) {
	path := filepath.Join(b.TempDir(), "tasks.jsonl")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for n := range 1_000_000 {
		id := fmt.Sprintf("-%d", n+1)
		for _, line := range []string{lineQueued, strings.Replace(lineQueued, "queued", "running", 1), lineSucceeded} {
			fmt.Fprintln(w, strings.Replace(line, "-1", id, 1))
		}
	}
	if err := errors.Join(w.Flush(), f.Close()); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for range b.N {
		tasks := NewTasks(Config{Kinds: testKinds, Workers: 1, Queue: 10, Keep: 1000, Log: discard})
		f, err := os.Open(path)
		if err == nil {
			err = errors.Join(tasks.replay(f), f.Close())
		}
		if err != nil || len(tasks.jobs) != 1000 {
			b.Fatal(len(tasks.jobs), err)
		}
	}
}

// ---- lifecycle.go

// A pipeListener is a network in memory, so that a server can run in a synctest bubble.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	close  func()
}

func newPipeListener() *pipeListener {
	closed := make(chan struct{})
	return &pipeListener{make(chan net.Conn), closed, sync.OnceFunc(func() { close(closed) })}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Dial(context.Context, string, string) (net.Conn, error) {
	server, client := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, syscall.ECONNREFUSED
	}
}

func (l *pipeListener) Close() error   { l.close(); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// A stage is a server in a synctest bubble.
type stage struct {
	*pipeListener
	client *http.Client
	stop   context.CancelFunc
	ended  chan error // of Run
}

func newStage(t *testing.T, l *Lifecycle, h http.Handler) *stage {
	return newStageOf(t, l, &http.Server{Handler: h})
}

func newStageOf(t *testing.T, l *Lifecycle, srv *http.Server) *stage {
	if l.Log == nil {
		l.Log = discard
	}
	ln := newPipeListener()
	transport := &http.Transport{DialContext: ln.Dial}
	ctx, cancel := context.WithCancel(t.Context())
	s := &stage{ln, &http.Client{Transport: transport}, cancel, make(chan error, 1)}
	go func() { s.ended <- l.Run(ctx, ln, srv) }()
	t.Cleanup(transport.CloseIdleConnections)
	return s
}

func (s *stage) get(t *testing.T, path string) *http.Response {
	t.Helper()
	resp, err := s.client.Get("http://server" + path)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Errorf("GET %s: %v", path, err)
	}
	resp.Body.Close()
	return resp
}

var ok = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

// A diary notes what hooks do, in order.
type diary struct{ entries []string }

func (d *diary) note(entry string, err error) func(context.Context) error {
	return func(context.Context) error {
		d.entries = append(d.entries, entry)
		return err
	}
}

func (d *diary) hook(name string) Hook {
	return Hook{name, d.note("start "+name, nil), d.note("drain "+name, nil), d.note("stop "+name, nil)}
}

func (d *diary) want(t *testing.T, entries ...string) {
	t.Helper()
	if !slices.Equal(d.entries, entries) {
		t.Errorf("got  %q\nwant %q", d.entries, entries)
	}
}

func TestLifecycleRunsItsStepsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := &diary{}, &Lifecycle{Grace: time.Minute, Linger: time.Second}
		var s *stage
		l.Add(d.hook("a"))
		l.Add(Hook{Name: "empty"})
		l.Add(d.hook("b"))
		l.Add(Hook{Name: "client", Start: func(context.Context) error {
			if l.Ready() {
				t.Error("ready before all has started")
			}
			return nil
		}, Drain: func(context.Context) error {
			s.get(t, "/")
			return nil
		}})
		s = newStage(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			d.note(fmt.Sprintf("request ready=%v", l.Ready()), nil)(r.Context())
		}))
		s.get(t, "/")
		s.stop()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
		d.want(t, "start a", "start b", "request ready=true", "request ready=false", "drain b", "drain a", "stop b", "stop a")
	})
}

func TestLifecycleRollsBackAStartThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := &diary{}, &Lifecycle{}
		l.Add(d.hook("a"))
		l.Add(d.hook("b"))
		l.Add(Hook{"c", d.note("start c", io.EOF), d.note("drain c", nil), d.note("stop c", nil)})
		l.Add(d.hook("d"))
		s := newStage(t, l, ok)
		if err := <-s.ended; !errors.Is(err, io.EOF) || err.Error() != "start c: EOF" {
			t.Errorf("got %v", err)
		}
		if _, err := s.client.Get("http://server/"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the listener is not closed: %v", err)
		}
		d.want(t, "start a", "start b", "start c", "stop b", "stop a")
	})
}

func TestLifecycleEndsInOrderWhenASignalComesDuringStartup(t *testing.T) {
	for name, returns := range map[string]func(context.Context) error{
		"the hook gives up": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"the hook succeeds": func(ctx context.Context) error { <-ctx.Done(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, l := &diary{}, &Lifecycle{}
				l.Add(d.hook("a"))
				l.Add(Hook{Name: "slow", Start: returns})
				l.Add(d.hook("b"))
				s := newStage(t, l, ok)
				synctest.Wait()
				s.stop()
				if err := <-s.ended; err != nil {
					t.Errorf("got %v, want no error: it was asked to stop", err)
				}
				d.want(t, "start a", "stop a")
			})
		})
	}
}

func TestLifecycleStopsEveryHookAndJoinsTheErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := &diary{}, &Lifecycle{Grace: time.Second}
		l.Add(Hook{Name: "a", Drain: d.note("drain a", nil), Stop: d.note("stop a", io.ErrNoProgress)})
		l.Add(Hook{Name: "b", Drain: d.note("drain b", io.ErrClosedPipe), Stop: d.note("stop b", io.ErrShortWrite)})
		s := newStage(t, l, ok)
		synctest.Wait()
		s.stop()
		err := <-s.ended
		for _, want := range []error{io.ErrNoProgress, io.ErrClosedPipe, io.ErrShortWrite} {
			if !errors.Is(err, want) {
				t.Errorf("%v is missing in %v", want, err)
			}
		}
		d.want(t, "drain b", "drain a", "stop b", "stop a")
	})
}

func TestLifecycleGivesEachStepItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &Lifecycle{Grace: 20 * time.Second}
		left := func(ctx context.Context) time.Duration {
			end, _ := ctx.Deadline()
			return time.Until(end)
		}
		var starting context.Context
		l.Add(Hook{
			Start: func(ctx context.Context) error { starting = ctx; return nil },
			Drain: func(ctx context.Context) error {
				if got := left(ctx); got != 10*time.Second || ctx.Err() != nil {
					t.Errorf("Drain has %v, want half of Grace", got)
				}
				if starting.Err() == nil {
					t.Error("the context of Start goes on after the signal")
				}
				return nil
			},
			Stop: func(ctx context.Context) error {
				if got := left(ctx); got != 5*time.Second || ctx.Err() != nil {
					t.Errorf("Stop has %v, want 5s", got)
				}
				return nil
			},
		})
		s := newStage(t, l, ok)
		synctest.Wait()
		s.stop()
		<-s.ended
	})
}

func TestStopOfAnIdleServerIsImmediate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, &Lifecycle{Grace: 20 * time.Second, Linger: 2 * time.Second}, ok)
		s.get(t, "/")
		time.Sleep(2 * time.Second)
		begin := time.Now()
		s.stop()
		if err := <-s.ended; err != nil || time.Since(begin) > time.Second {
			t.Errorf("it took %v: %v", time.Since(begin), err)
		}
	})
}

func TestStopOfABusyServerLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, &Lifecycle{Grace: 20 * time.Second, Linger: 2 * time.Second}, ok)
		if resp := s.get(t, "/"); resp.Close {
			t.Error("a reply says Connection: close before the signal")
		}
		begin := time.Now()
		s.stop()
		for range 3 { // on the kept-alive connection, and then on new ones
			synctest.Wait()
			if resp := s.get(t, "/"); !resp.Close {
				t.Error("a reply after the signal does not say Connection: close")
			}
			time.Sleep(500 * time.Millisecond)
		}
		if err := <-s.ended; err != nil || time.Since(begin) < 2*time.Second || time.Since(begin) > 3*time.Second {
			t.Errorf("it took %v, want the linger of 2s: %v", time.Since(begin), err)
		}
	})
}

// TestStopLingersForAPollThatTheDrainEnded: its client comes back once more.
func TestStopLingersForAPollThatTheDrainEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, finished := &Lifecycle{Grace: 20 * time.Second, Linger: time.Second}, make(chan bool)
		l.Add(Hook{Drain: func(context.Context) error { close(finished); return nil }})
		s := newStage(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/poll" {
				<-finished
			}
		}))
		polled := make(chan bool)
		go func() {
			s.get(t, "/poll")
			s.get(t, "/result")
			close(polled)
		}()
		time.Sleep(5 * time.Second)
		s.stop()
		<-polled
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

func TestLingerLeavesShutdownHalfOfTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, &Lifecycle{Grace: time.Second, Linger: time.Hour}, ok)
		s.get(t, "/")
		begin := time.Now()
		s.stop()
		if err := <-s.ended; err != nil || time.Since(begin).Round(100*time.Millisecond) != 500*time.Millisecond {
			t.Errorf("it took %v, want half of the grace: %v", time.Since(begin), err)
		}
	})
}

func TestStopAnswersTheRequestInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, &Lifecycle{Grace: 20 * time.Second}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(15 * time.Second)
			w.WriteHeader(http.StatusTeapot)
		}))
		status := make(chan int)
		go func() { status <- s.get(t, "/").StatusCode }()
		synctest.Wait()
		s.stop()
		if got := <-status; got != http.StatusTeapot {
			t.Errorf("got %d, want 418", got)
		}
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

func TestStopCutsOffWhatTakesLongerThanTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, &Lifecycle{Grace: 20 * time.Second}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		}))
		failed := make(chan error)
		go func() {
			_, err := s.client.Get("http://server/")
			failed <- err
		}()
		synctest.Wait()
		begin := time.Now()
		s.stop()
		if err := <-failed; err == nil {
			t.Error("the client got a reply")
		}
		if err := <-s.ended; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 20*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

func TestStopWithASilentConnectionEndsWithinTheGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, &Lifecycle{Grace: 20 * time.Second}, ok)
		conn, err := s.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		begin := time.Now()
		synctest.Wait()
		s.stop()
		if err := <-s.ended; err != nil || time.Since(begin) > 10*time.Second {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
	})
}

func TestLifecycleEndsWhenItsListenerBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, l := &diary{}, &Lifecycle{Grace: time.Second}
		l.Add(d.hook("a"))
		s := newStage(t, l, nil) // no handler: http.DefaultServeMux, as in http.Server
		if resp := s.get(t, "/"); resp.StatusCode != 404 {
			t.Errorf("got %s, want http.DefaultServeMux's 404", resp.Status)
		}
		s.Close()
		if err := <-s.ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("got %v, want %v", err, net.ErrClosed)
		}
		d.want(t, "start a", "drain a", "stop a")
	})
}

func ExampleLifecycle() {
	say := func(what string) func(context.Context) error {
		return func(context.Context) error { fmt.Println(what); return nil }
	}
	l := &Lifecycle{Log: slog.New(slog.DiscardHandler), Grace: time.Second}
	l.Add(Hook{Name: "model", Start: say("load the model"), Stop: say("save the log")})
	l.Add(Hook{Name: "jobs", Start: say("start the jobs"), Drain: say("finish the jobs")})

	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() { // a client, and then Ctrl-C
		resp, err := http.Get("http://" + ln.Addr().String())
		if err == nil {
			fmt.Println("served", resp.StatusCode)
			resp.Body.Close()
		}
		stop()
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

// ---- main.go

// newTestApp returns the app with its hooks started, and its handler.
func newTestApp(t *testing.T, log *slog.Logger) (*app, http.Handler) {
	t.Helper()
	a := newApp(config{workers: 1, queue: 3, keep: 10}, log)
	if err := a.loadItems(""); err != nil {
		t.Fatal(err)
	}
	if err := a.tasks.Start(""); err != nil {
		t.Fatal(err)
	}
	a.lifecycle.ready.Store(true)
	t.Cleanup(func() { closeNow(a.tasks); a.stop() })
	return a, a.handler()
}

func TestAppAnswersAsItsTableSays(t *testing.T) {
	_, h := newTestApp(t, discard)
	for _, tt := range []struct {
		method, target string
		status         int
		body           string
	}{
		{"GET", "/", 307, "/docs"},
		{"GET", "/users/", 200, `[{"username":"Rick"},{"username":"Morty"}]`},
		{"GET", "/users/Rick", 200, `{"username":"Rick"}`},
		{"GET", "/users/%3Cb%3E%26%ED%95%9C", 200, `{"username":"<b>&한"}`},
		{"GET", "/users", 307, "/users/"},
		{"GET", "/orders/", 200, `[{"order":"Taco"},{"order":"Burritto"}]`},
		{"GET", "/orders/me", 200, `{"my_order":"taco"}`},
		{"GET", "/v1/1", 200, `"Boostcamp"`},
		{"GET", "/v1/2", 200, `"AI"`},
		{"GET", "/v1/3", 200, `"Tech"`},
		{"GET", "/v1/5", 500, ``},
		{"GET", "/v1/x", 422, `path.item_id must be an integer of at most 64 bits`},
		{"GET", "/v2/3", 200, `"Tech"`},
		{"GET", "/v2/5", 404, `아이템을 찾을 수 없습니다 [id: 5]`},
		{"GET", "/v2/+5", 404, `아이템을 찾을 수 없습니다 [id: 5]`},
		{"GET", "/v2/005", 404, `아이템을 찾을 수 없습니다 [id: 5]`},
		{"GET", "/v2/-5", 404, `아이템을 찾을 수 없습니다 [id: -5]`},
		{"GET", "/v2/five", 422, `path.item_id must be an integer of at most 64 bits`},
		{"GET", "/tasks", 200, `[]`},
		{"GET", "/tasks?status=failed", 200, `[]`},
		{"GET", "/tasks?status=nope", 422, `query.status must be one of [queued running succeeded failed canceled]`},
		{"GET", "/tasks?status=%zz", 400, `the query is malformed`},
		{"GET", "/tasks/nope", 404, `no such task`},
		{"GET", "/tasks/aaaaaaaa-1", 410, `the task is no longer known`},
		{"DELETE", "/tasks/nope", 404, `no such task`},
		{"GET", "/healthz", 200, `{"status":"ok"}`},
		{"GET", "/readyz", 200, `{"status":"ok"}`},
		{"GET", "/nope", 404, `there is nothing at this path`},
		{"DELETE", "/users/", 405, `this path allows GET, HEAD`},
		{"PUT", "/tasks", 405, `this path allows GET, HEAD, POST`},
	} {
		w := do(h, tt.method, tt.target, "")
		got := strings.TrimSuffix(w.Body.String(), "\n")
		switch {
		case w.Code >= 400:
			got = problemOf(t, w).Detail
		case w.Code >= 300:
			got = w.Header().Get("Location")
		}
		if w.Code != tt.status || got != tt.body {
			t.Errorf("%s %s: got %d %s, want %d %s", tt.method, tt.target, w.Code, got, tt.status, tt.body)
		}
		if w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: no nosniff", tt.method, tt.target)
		}
		stale := w.Code >= 400 || strings.HasPrefix(tt.target, "/tasks") || strings.HasSuffix(tt.target, "z")
		if got := w.Header().Get("Cache-Control"); (got == "no-store") != stale {
			t.Errorf("%s %s: Cache-Control is %q", tt.method, tt.target, got)
		}
	}
}

// serveApp serves the app on a real socket, with its own timeouts and bounds.
func serveApp(t *testing.T, a *app) *httptest.Server {
	srv := httptest.NewUnstartedServer(nil)
	srv.Config = a.server()
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

// post submits a task over HTTP.
func post(t *testing.T, h http.Handler, body string, header ...string) (*httptest.ResponseRecorder, Task) {
	t.Helper()
	w := do(h, "POST", "/tasks", body, append(header, "Content-Type", "application/json")...)
	var task Task
	if w.Code < 300 {
		if err := json.Unmarshal(w.Body.Bytes(), &task); err != nil {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
	}
	return w, task
}

func TestCreateTaskChecksItsInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, tt := range []struct {
			body, want string
		}{
			{`{"kind":"sleep"}`, `{"wait_time":3}`},
			{`{"kind":"sleep","input":{}}`, `{"wait_time":3}`},
			{`{"kind":"sleep","input":{"wait_time":1}}`, `{"wait_time":1}`},
			{`{"kind":"sleep","input":{"wait_time":10}}`, `{"wait_time":10}`},
			{`{"kind":"sleep","input":{"wait_time":0}}`, `body.input.wait_time must be between 1 and 10`},
			{`{"kind":"sleep","input":{"wait_time":11}}`, `body.input.wait_time must be between 1 and 10`},
			{`{"kind":"sleep","input":{"wait_time":"3"}}`, `body.input.wait_time must be an integer, and not too large`},
			{`{"kind":"sleep","input":{"n":3}}`, `body.input.n is not a field here`},
			{`{"kind":"sleep","input":null}`, `body.input must not be null`},
			{`{"kind":"sleep","input":[]}`, `body.input must be an object`},
			{`{"kind":"primes","input":{"n":2}}`, `{"n":2}`},
			{`{"kind":"primes","input":{"n":50000000}}`, `{"n":50000000}`},
			{`{"kind":"primes","input":{"n":1}}`, `body.input.n must be between 2 and 50000000`},
			{`{"kind":"primes","input":{"n":50000001}}`, `body.input.n must be between 2 and 50000000`},
			{`{"kind":"primes"}`, `body.input.n must be between 2 and 50000000`},
			{`{"kind":"nope"}`, `body.kind must be a kind of task: primes or sleep`},
			{`{}`, `body.kind must be a kind of task: primes or sleep`},
			{`{"kind":"sleep","priority":1}`, `body.priority is not a field here`},
			{`null`, `body must not be null`},
		} {
			a, h := newTestApp(t, discard)
			w, task := post(t, h, tt.body)
			if w.Code == 202 {
				if string(task.Input) != tt.want || w.Header().Get("Location") != "/tasks/"+task.ID {
					t.Errorf("%s: got input %s, Location %q, want %s", tt.body, task.Input, w.Header().Get("Location"), tt.want)
				}
				a.tasks.Cancel(task.ID)
			} else if p := problemOf(t, w); w.Code != 422 || p.Detail != tt.want {
				t.Errorf("%s: got %d %s, want %s", tt.body, w.Code, p.Detail, tt.want)
			}
			closeNow(a.tasks)
		}
	})
}

// TestTasksOverHTTP is the lecture's comparison: answered at once and polled, or waited for.
func TestTasksOverHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h := newTestApp(t, discard)
		begin := time.Now()
		w, task := post(t, h, `{"kind":"sleep","input":{"wait_time":3}}`)
		if w.Code != 202 || time.Since(begin) != 0 || w.Header().Get("Preference-Applied") != "" {
			t.Errorf("got %d after %v, want 202 at once", w.Code, time.Since(begin))
		}
		time.Sleep(1500 * time.Millisecond)
		w = do(h, "GET", "/tasks/"+task.ID, "")
		if err := json.Unmarshal(w.Body.Bytes(), &task); err != nil || task.Status != Running || task.Progress < 0.4 || task.Progress > 0.6 {
			t.Errorf("halfway: %s, %v", w.Body, err)
		}
		if w.Header().Get("Retry-After") != "1" {
			t.Error("no Retry-After on a task that has not finished")
		}
		w = do(h, "GET", "/tasks/"+task.ID, "", "Prefer", "wait=5")
		if err := json.Unmarshal(w.Body.Bytes(), &task); err != nil || w.Code != 200 || string(task.Result) != `"task done after 3"` {
			t.Errorf("at its end: %s, %v", w.Body, err)
		}
		if time.Since(begin).Round(time.Millisecond) != 3*time.Second || w.Header().Get("Retry-After") != "" || w.Header().Get("Preference-Applied") != "wait=5" {
			t.Errorf("after %v: %v", time.Since(begin), w.Header())
		}

		begin = time.Now()
		w, task = post(t, h, `{"kind":"sleep"}`, "Prefer", "wait=5")
		if w.Code != 200 || task.Status != Succeeded || w.Header().Get("Location") != "/tasks/"+task.ID || time.Since(begin).Round(time.Millisecond) != 3*time.Second {
			t.Errorf("waited for: got %d %s after %v", w.Code, w.Body, time.Since(begin))
		}
		begin = time.Now()
		w, task = post(t, h, `{"kind":"sleep"}`, "Prefer", "wait=1")
		if w.Code != 202 || task.Status != Running || time.Since(begin) != time.Second {
			t.Errorf("not waited for long enough: got %d %s after %v", w.Code, w.Body, time.Since(begin))
		}
	})
}

func TestCancelTaskOverHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, h := newTestApp(t, discard)
		_, running := post(t, h, `{"kind":"sleep"}`)
		_, done := post(t, h, `{"kind":"primes","input":{"n":100}}`)
		for range 2 {
			w := do(h, "DELETE", "/tasks/"+running.ID, "")
			if w.Code != 200 || !strings.Contains(w.Body.String(), `"status":"canceled"`) ||
				!strings.Contains(w.Body.String(), `"error":{"type":"about:blank","title":"Conflict","status":409,"detail":"the task was canceled"}`) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		}
		if w := do(h, "GET", "/tasks/"+done.ID, "", "Prefer", "wait=1"); !strings.Contains(w.Body.String(), `"result":{"primes":25}`) {
			t.Errorf("got %s", w.Body)
		}
		w := do(h, "DELETE", "/tasks/"+done.ID, "")
		if p := problemOf(t, w); w.Code != 409 || p.Detail != "the task has already finished" {
			t.Errorf("got %d %s", w.Code, w.Body)
		}
	})
}

func TestCreateTaskIsRefusedWithRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, h := newTestApp(t, discard)
		refused := func(detail string) {
			t.Helper()
			w, _ := post(t, h, `{"kind":"sleep"}`)
			if p := problemOf(t, w); w.Code != 503 || p.Detail != detail || w.Header().Get("Retry-After") != "1" {
				t.Errorf("got %d %s, Retry-After %q; want 503 %s", w.Code, p.Detail, w.Header().Get("Retry-After"), detail)
			}
		}
		for range 4 { // one runs, three wait
			post(t, h, `{"kind":"sleep"}`)
			synctest.Wait()
		}
		refused("the queue is full")
		go a.tasks.Stop(t.Context())
		synctest.Wait()
		refused("no tasks are accepted now")
		if w := do(h, "GET", "/readyz", ""); problemOf(t, w).Status != 503 {
			t.Errorf("readyz while draining: %d", w.Code)
		}
		if w := do(h, "GET", "/healthz", ""); w.Code != 200 {
			t.Errorf("healthz while draining: %d", w.Code)
		}
	})
}

func TestReadyzFollowsTheLifecycle(t *testing.T) {
	a, h := newTestApp(t, discard)
	a.lifecycle.ready.Store(false)
	if w := do(h, "GET", "/readyz", ""); problemOf(t, w).Status != 503 {
		t.Errorf("got %d", w.Code)
	}
}

func TestWaitingPollEndsWithTheServerAndWithItsClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		a, h := newTestApp(t, log)
		_, task := post(t, h, `{"kind":"sleep","input":{"wait_time":10}}`)
		begin := time.Now()

		ctx, leave := context.WithCancel(t.Context())
		left := make(chan any)
		go func() {
			defer func() { left <- recover() }()
			r := httptest.NewRequestWithContext(ctx, "GET", "/tasks/"+task.ID, nil)
			r.Header.Set("Prefer", "wait=5")
			h.ServeHTTP(httptest.NewRecorder(), r)
		}()
		synctest.Wait()
		leave()
		if got := <-left; got != http.ErrAbortHandler || !strings.Contains(lines.String(), "status=499") {
			t.Errorf("the client left: got %v, and the log is %q", got, lines)
		}

		woken := make(chan *httptest.ResponseRecorder)
		go func() { woken <- do(h, "GET", "/tasks/"+task.ID, "", "Prefer", "wait=5") }()
		synctest.Wait()
		a.stop()
		if w := <-woken; w.Code != 200 || !strings.Contains(w.Body.String(), "running") || time.Since(begin) != 0 {
			t.Errorf("the server stops: got %d %s after %v", w.Code, w.Body, time.Since(begin))
		}
	})
}

func TestPreferWait(t *testing.T) {
	for in, want := range map[string]int{
		"wait=5": 5, "WAIT=5": 5, " wait = 5 ": 5, "wait=5;x=y": 5, "respond-async, wait=5": 5, "wait=5, wait=7": 5,
		"wait=0": 0, "wait=30": 30, "wait=31": 30, "wait=99999999999999999999999": 30, "wait=007": 7,
		`x="a, wait=9", wait=5`: 5, `x="\", wait=9", wait=5`: 5,
		"": -1, "wait": -1, "wait=": -1, "wait=x": -1, "wait=-5": -1, "wait=+5": -1, "wait=5.0": -1, "wait=5s": -1,
		`wait="5"`: -1, "await=5": -1, "x=wait=5": -1, "wait=x, wait=5": 5, "wait=5 6": -1, ";wait=5": -1,
	} {
		got, ok := preferWait(http.Header{"Prefer": {in}})
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("Prefer: %s: got %d, want %d", in, got, want)
		}
	}
	if got, ok := preferWait(http.Header{"Prefer": {"respond-async", "wait=5"}}); got != 5 || !ok {
		t.Errorf("on the second line: got %d, %v", got, ok)
	}
}

func FuzzPreferWait(f *testing.F) {
	for _, seed := range []string{"wait=5", `x="a, wait=9"`, "wait=,wait=1", `"`, `"\`, "wait=\xff", "WAIT = 99 ; a"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, line string) {
		seconds, ok := preferWait(http.Header{"Prefer": {line}})
		if seconds < 0 || seconds > maxWait || !ok && seconds != 0 {
			t.Errorf("%q: got %d, %v", line, seconds, ok)
		}
		if ok && !strings.Contains(strings.ToLower(line), "wait") {
			t.Errorf("%q was taken for a wait", line)
		}
	})
}

func TestCrossOriginChangesAreRefused(t *testing.T) {
	_, h := newTestApp(t, discard)
	for _, tt := range []struct {
		method, target, name, value string
		status                      int
	}{
		{"POST", "/tasks", "Sec-Fetch-Site", "cross-site", 403},
		{"POST", "/tasks", "Origin", "https://evil.example", 403},
		{"DELETE", "/tasks/aaaaaaaa-1", "Sec-Fetch-Site", "same-site", 403},
		{"DELETE", "/tasks/aaaaaaaa-1", "Sec-Fetch-Site", "same-origin", 410},
		{"GET", "/healthz", "Sec-Fetch-Site", "cross-site", 200},
	} {
		w := do(h, tt.method, tt.target, "", tt.name, tt.value)
		if w.Code != tt.status {
			t.Errorf("%s %s with %s: %s: got %d, want %d", tt.method, tt.target, tt.name, tt.value, w.Code, tt.status)
		}
		if w.Code >= 400 {
			problemOf(t, w)
		}
	}
}

// TestTaskErrorIsTheProblemARequestWouldHaveGot: under error, and the cause in the log alone.
func TestTaskErrorIsTheProblemARequestWouldHaveGot(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{Errorf(404, "아이템 <5>").Because(errors.New("secret")), `{"type":"about:blank","title":"Not Found","status":404,"detail":"아이템 <5>"}`},
		{errors.New("secret"), `{"type":"about:blank","title":"Internal Server Error","status":500}`},
		{ErrStopped, `{"type":"about:blank","title":"Service Unavailable","status":503,"detail":"the server stopped before the task had finished"}`},
		{ErrCrashed, `{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"the server crashed three times in a row while the task ran"}`},
	} {
		if got := string((&app{}).taskProblem(tt.err)); got != tt.want {
			t.Errorf("%v: got %s, want %s", tt.err, got, tt.want)
		}
	}
}

func TestCountPrimes(t *testing.T) {
	for n, want := range map[int]int{2: 1, 3: 2, 4: 2, 5: 3, 9: 4, 10: 4, 25: 9, 100: 25, 121: 30, 1000: 168, 100_000: 9592} {
		last := 0.0
		got, err := countPrimes(t.Context(), primesInput{n}, func(p float64) { last = p })
		if err != nil || got != (primesResult{want}) || last > 1 || n > 1000 && last < 0.9 {
			t.Errorf("up to %d: got %v, %v, want %d; progress %v", n, got, err, want, last)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrCanceled)
	if _, err := countPrimes(ctx, primesInput{50_000_000}, func(float64) { t.Error("it goes on") }); err != ErrCanceled {
		t.Errorf("canceled: got %v", err)
	}
}

func TestKindsRefuseAnInputThatIsNotTheirs(t *testing.T) {
	for name, kind := range (&app{}).kinds() { // as one from an older journal could be
		if _, err := kind.Run(t.Context(), json.RawMessage(`[]`), func(float64) {}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFlagsThatMakeNoSense(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"-nope"}, 2, "flag provided but not defined: -nope"},
		{[]string{"-workers", "x"}, 2, "invalid value"},
		{[]string{"-workers", "0"}, 2, "-workers must be between 1 and 1000"},
		{[]string{"-workers", "1001"}, 2, "-workers must be between 1 and 1000"},
		{[]string{"-queue", "0"}, 2, "-queue and -keep must be at least 1"},
		{[]string{"-keep", "-1"}, 2, "-queue and -keep must be at least 1"},
		{[]string{"-grace", "0s"}, 2, "-grace must be positive, and -linger must not be negative"},
		{[]string{"-linger", "-1s"}, 2, "-grace must be positive, and -linger must not be negative"},
		{[]string{"-log", "xml"}, 2, `-log must be text or json, not "xml"`},
		{[]string{"start"}, 2, `unexpected argument "start"`},
		{[]string{"-h"}, 0, ""},
	} {
		var stderr bytes.Buffer
		code := run(t.Context(), tt.args, &stderr)
		if code != tt.code || !strings.HasPrefix(stderr.String(), tt.want) || !strings.Contains(stderr.String(), "Usage of plainapi:") {
			t.Errorf("%q: got %d and %q, want %d and %q with the usage", tt.args, code, stderr.String(), tt.code, tt.want)
		}
	}
}

func TestStartThatFailsIsOneLineAndExit1(t *testing.T) {
	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	file := func(content string) string {
		path := filepath.Join(dir, strconv.Itoa(len(content)))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, args := range map[string][]string{
		"a taken port":          {"-addr", ln.Addr().String()},
		"no port at all":        {"-addr", "localhost"},
		"no items":              {"-addr", "localhost:0", "-items", filepath.Join(dir, "nope")},
		"items that are none":   {"-addr", "localhost:0", "-items", file("{")},
		"items of a wrong type": {"-addr", "localhost:0", "-items", file(`{"one": 1}`)},
		"items that are null":   {"-addr", "localhost:0", "-items", file("null")},
		"a damaged journal":     {"-addr", "localhost:0", "-journal", file("damaged\n")},
	} {
		var stderr logBuffer
		if code := run(t.Context(), args, &stderr); code != 1 {
			t.Errorf("%s: exit code %d", name, code)
		}
		if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=ERROR") {
			t.Errorf("%s: the log is %q", name, got)
		}
	}
}

// A process is the program, in a process of its own.
type process struct {
	*os.Process
	url    string
	log    *logBuffer
	exited chan error
}

// A listenLog tells when the program in it listens, and where.
type listenLog struct {
	*logBuffer
	url chan string
}

var listening = regexp.MustCompile(`listening.*(http://.*)/docs`)

func (l listenLog) Write(p []byte) (int, error) {
	if m := listening.FindSubmatch(p); m != nil {
		l.url <- string(m[1])
	}
	return l.logBuffer.Write(p)
}

// start runs the test binary as the program, and returns once it listens.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	log := listenLog{&logBuffer{}, make(chan string, 1)}
	cmd := exec.Command(os.Args[0], append([]string{"-addr", "localhost:0"}, args...)...)
	cmd.Env = append(os.Environ(), "PLAINAPI_RUN=1")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{Process: cmd.Process, log: log.logBuffer, exited: make(chan error, 1)}
	go func() { p.exited <- cmd.Wait() }()
	t.Cleanup(func() { p.Kill() })
	select {
	case p.url = <-log.url:
	case err := <-p.exited:
		t.Fatalf("it did not start: %v\n%s", err, p.log)
	}
	return p
}

// exit waits for the process, and returns its exit code: -1 if a signal ended it.
func (p *process) exit() int {
	err := <-p.exited
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode()
	}
	return 0
}

func signalsWork(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process can't send another a signal on Windows")
	}
}

func TestSIGTERMStopsTheProgramInOrder(t *testing.T) {
	signalsWork(t)
	p := start(t, "-linger", "0s")
	resp, err := http.Post(p.url+"/tasks", "application/json", strings.NewReader(`{"kind":"sleep","input":{"wait_time":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	p.Signal(syscall.SIGTERM)
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{`msg="draining; a second signal ends the program at once" cause="terminated signal received"`, "msg=served requests=1", "succeeded=1", "msg=stopped"} {
		if !strings.Contains(p.log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, p.log)
		}
	}
}

func TestSecondSignalEndsTheProgramAtOnce(t *testing.T) {
	signalsWork(t)
	p := start(t)
	// Until the task has drained, the first signal does not end it.
	resp, err := http.Post(p.url+"/tasks", "application/json", strings.NewReader(`{"kind":"sleep","input":{"wait_time":10}}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	p.Signal(os.Interrupt)
	for { // each request is a round trip, and the reply says when the signal has arrived
		resp, err := http.Get(p.url + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 503 {
			break
		}
	}
	p.Signal(os.Interrupt)
	if code := p.exit(); code != -1 {
		t.Errorf("exit code %d, want the signal to have killed it", code)
	}
}

// TestStopLosesNoRequest: 25 clients on kept-alive connections, and a stop in the middle.
func TestStopLosesNoRequest(t *testing.T) {
	signalsWork(t)
	p := start(t, "-linger", "300ms")
	var clients sync.WaitGroup
	var served, lost atomic.Int64
	var busy sync.WaitGroup // until every client has sent 20 requests, or failed
	busy.Add(25)
	stopped := make(chan bool)
	for range 25 {
		clients.Go(func() {
			isBusy := sync.OnceFunc(busy.Done)
			defer isBusy()
			transport := &http.Transport{}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			for n := 0; ; n++ {
				// A POST: the transport would send a GET again by itself, on another connection.
				resp, err := client.Post(p.url+"/nope", "", nil)
				if errors.Is(err, syscall.ECONNREFUSED) {
					return // a new connection, and the server is gone
				}
				if err != nil {
					t.Error(err)
					lost.Add(1)
					return
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				served.Add(1)
				if n == 20 {
					isBusy()
				}
				select {
				case <-stopped:
					if resp.Close {
						return
					}
				default:
				}
			}
		})
	}
	busy.Wait()
	close(stopped)
	p.Signal(syscall.SIGTERM)
	clients.Wait()
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, p.log)
	}
	t.Logf("%d requests served, %d lost", served.Load(), lost.Load())
}

// appStage is the app's own server in a synctest bubble.
func appStage(t *testing.T, c config, log *slog.Logger) (*app, *stage) {
	a := newApp(c, log)
	return a, newStageOf(t, a.lifecycle, a.server())
}

var roomy = config{workers: 1, queue: 100, keep: 100, grace: 20 * time.Second, linger: 2 * time.Second}

// send writes raw bytes to a new connection and returns what comes back until it is closed, and
// how long that took.
func (s *stage) send(t *testing.T, drip time.Duration, raw string) (reply string, took time.Duration) {
	t.Helper()
	conn, err := s.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	var writer sync.WaitGroup
	defer writer.Wait()
	defer conn.Close()
	begin := time.Now()
	writer.Go(func() {
		for i := range len(raw) {
			if _, err := io.WriteString(conn, raw[i:i+1]); err != nil {
				return
			}
			time.Sleep(drip)
		}
	})
	data, _ := io.ReadAll(conn)
	return string(data), time.Since(begin)
}

func TestSlowClientsAreCut(t *testing.T) {
	const post = "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
	for _, tt := range []struct {
		name, raw string
		drip      time.Duration
		status    string
		within    time.Duration
	}{
		{"says nothing", "", 0, "", 5 * time.Second},
		{"half a header", "GET / HT", 0, "", 5 * time.Second},
		{"drips its header", strings.Repeat("GET / HTTP/1.1", 10), time.Second, "", 5 * time.Second},
		{"half a body", post + `{"kind":`, 0, "HTTP/1.1 408 ", 16 * time.Second},
		{"drips its body", post + strings.Repeat(" ", 100), time.Second, "", 60 * time.Second},
		{"is idle", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 0, "HTTP/1.1 200 ", 60 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, s := appStage(t, roomy, discard)
				reply, took := s.send(t, tt.drip, tt.raw)
				if !strings.HasPrefix(reply, tt.status) || took > tt.within {
					t.Errorf("cut after %v with %q, want within %v with %q", took, reply, tt.within, tt.status)
				}
				s.stop()
				if err := <-s.ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestClientThatDoesNotReadIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, lines := newLog()
		_, s := appStage(t, roomy, log)
		conn, err := s.Dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "GET /users/ HTTP/1.1\r\nHost: x\r\n\r\n")
		time.Sleep(31 * time.Second)
		synctest.Wait()
		begin := time.Now()
		s.stop()
		if err := <-s.ended; err != nil || time.Since(begin) > time.Second {
			t.Errorf("the stop waited %v for it: %v\n%s", time.Since(begin), err, lines)
		}
	})
}

// TestWaitingPollOutlivesTheTimeouts: 30 seconds is as long as the server gives other requests.
func TestWaitingPollOutlivesTheTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := appStage(t, roomy, discard)
		synctest.Wait()
		var last Task
		for range 5 {
			last = submit(t, a.tasks, "sleep", `{"wait_time":10}`)
		}
		req, err := http.NewRequest("GET", "http://server/tasks/"+last.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Prefer", "wait=30")
		begin := time.Now()
		for _, want := range []Status{Queued, Succeeded} {
			resp, err := s.client.Do(req)
			if err != nil {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
			var task Task
			if err := json.NewDecoder(resp.Body).Decode(&task); err != nil || task.Status != want {
				t.Errorf("after %v: %+v, %v, want %s", time.Since(begin), task, err, want)
			}
			resp.Body.Close()
		}
		if took := time.Since(begin).Round(time.Second); took != 50*time.Second {
			t.Errorf("it took %v, want 30s and 20s more", took)
		}
		s.stop()
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestPollGetsItsResultWhileTheServerDrains: so a stop does not cost a client its result.
func TestPollGetsItsResultWhileTheServerDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, s := appStage(t, roomy, discard)
		synctest.Wait()
		task := submit(t, a.tasks, "sleep", `{"wait_time":5}`)
		begin := time.Now()
		s.stop()
		for !task.Status.Finished() {
			time.Sleep(time.Second)
			resp, err := s.client.Get("http://server/tasks/" + task.ID)
			if err != nil {
				t.Fatalf("after %v: %v", time.Since(begin), err)
			}
			if err := json.NewDecoder(resp.Body).Decode(&task); err != nil {
				t.Error(err)
			}
			resp.Body.Close()
		}
		if task.Status != Succeeded {
			t.Errorf("got %+v", task)
		}
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestTaskThatIgnoresItsContextCostsNoRequest: its time is not taken from that of the requests.
func TestTaskThatIgnoresItsContextCostsNoRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newApp(config{workers: 1, queue: 10, keep: 10, grace: 2 * time.Second}, discard)
		a.tasks.config.Kinds = testKinds
		s := newStageOf(t, a.lifecycle, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(1900 * time.Millisecond)
		})})
		synctest.Wait()
		submit(t, a.tasks, "deaf", "")
		status := make(chan int)
		go func() {
			resp, err := s.client.Get("http://server/")
			if err != nil {
				t.Error(err)
				status <- 0
				return
			}
			resp.Body.Close()
			status <- resp.StatusCode
		}()
		synctest.Wait()
		begin := time.Now()
		s.stop()
		if got := <-status; got != 200 {
			t.Errorf("the request in flight got %d", got)
		}
		if err := <-s.ended; !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 7*time.Second {
			t.Errorf("the stop ended after %v with %v, want an error about the task within the grace and 5 s", time.Since(begin), err)
		}
		time.Sleep(time.Minute) // until the task has returned after all
	})
}

// TestProcessorsAreLentOnlyWhileTasksHoldAll: and what was set is set again.
func TestProcessorsAreLentOnlyWhileTasksHoldAll(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	runtime.GOMAXPROCS(3)
	var p processors
	for i, want := range []struct{ n, procs int }{{1, 3}, {1, 3}, {1, 4}, {1, 5}, {-1, 4}, {-1, 3}, {1, 4}, {-1, 3}, {-1, 3}, {-1, 3}} {
		p.add(want.n)
		if got := runtime.GOMAXPROCS(0); got != want.procs {
			t.Errorf("step %d, %d tasks: GOMAXPROCS is %d, want %d", i, p.busy, got, want.procs)
		}
	}
}

// TestWaitingPollDoesNotHoldTheStopUp: it is woken, and answered with the task as it is.
func TestWaitingPollDoesNotHoldTheStopUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan bool)
		a, s := appStage(t, roomy, discard)
		synctest.Wait()
		a.tasks.config.Kinds = map[string]Kind{"deaf": {Run: func(context.Context, json.RawMessage, func(float64)) (any, error) {
			<-release
			return nil, nil
		}}}
		a.lifecycle.hooks[1].Drain = nil // tasks: a poll that no Drain ends
		task := submit(t, a.tasks, "deaf", "")
		status := make(chan int)
		go func() {
			req, _ := http.NewRequest("GET", "http://server/tasks/"+task.ID, nil)
			req.Header.Set("Prefer", "wait=30")
			resp, err := s.client.Do(req)
			if err != nil {
				t.Error(err)
				status <- 0
				return
			}
			resp.Body.Close()
			status <- resp.StatusCode
		}()
		synctest.Wait()
		begin := time.Now()
		s.stop()
		if got := <-status; got != 200 || time.Since(begin) > 3*time.Second {
			t.Errorf("the poll got %d after %v", got, time.Since(begin))
		}
		close(release)
		if err := <-s.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestHostileRequests: the right status, and the next request is answered.
func TestHostileRequests(t *testing.T) {
	log, lines := newLog()
	a, _ := newTestApp(t, log)
	srv := serveApp(t, a)
	const js = "Content-Type: application/json\r\n"
	for _, tt := range []struct{ name, raw, status string }{
		{"no HTTP", "hello\r\n\r\n", "400"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"},
		{"a header without a name", "GET / HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", "400"},
		{"a space before the colon", "GET / HTTP/1.1\r\nHost: x\r\nContent-Length : 1\r\n\r\n", "400"},
		{"two lengths", "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "400"},
		{"a negative length", "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"},
		{"an unknown coding", "POST /tasks HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", "501"},
		{"a bad chunk", "POST /tasks HTTP/1.1\r\nHost: x\r\n" + js + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", "400"},
		{"a large header", "GET / HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 70<<10) + "\r\n\r\n", "431"},
		{"a large body", "POST /tasks HTTP/1.1\r\nHost: x\r\n" + js + "Content-Length: 1048577\r\n\r\n", "413"},
		{"a large body in chunks", "POST /tasks HTTP/1.1\r\nHost: x\r\n" + js + "Transfer-Encoding: chunked\r\n\r\n100001\r\n" + strings.Repeat(" ", 1<<20+1) + "\r\n0\r\n\r\n", "413"},
		{"a path up and out", "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "307"},
		{"a path up and out, encoded", "GET /users/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"a bad escape", "GET /users/%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"a NUL", "GET /users/%00 HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"no UTF-8", "GET /users/%ff HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"a line break in the path", "GET /users/%0d%0aSet-Cookie:x HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"a line break in the request id", "GET /users/ HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\rb\r\n\r\n", "400"},
		{"a URL as the target", "GET http://x/users/Rick HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"a method that is none", "G<>T / HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		{"CONNECT", "CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		{"TRACE", "TRACE /users/ HTTP/1.1\r\nHost: x\r\n\r\n", "405"},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "200"},
		{"GET *", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", "404"},
		{"HTTP/1.0", "GET /users/ HTTP/1.0\r\n\r\n", "200"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "404"},
		{"an unknown expectation", "POST /tasks HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", "417"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := strings.Count(lines.String(), "msg=request")
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if !strings.HasPrefix(tt.raw, "PRI") {
				tt.raw = strings.Replace(tt.raw, "\r\n", "\r\nConnection: close\r\n", 1)
			}
			go io.WriteString(conn, tt.raw)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil && resp.StatusCode < 400 || !strings.HasPrefix(resp.Status, tt.status) {
				t.Errorf("got %s %s, %v; want %s", resp.Status, body, err, tt.status)
			}
			if strings.Contains(resp.Header.Get("Content-Type"), "problem") == (resp.Header.Get("X-Request-Id") == "") {
				if resp.StatusCode >= 400 {
					t.Errorf("an error of the app's own is no problem: %v %s", resp.Header, body)
				}
			}
			next, err := http.Get(srv.URL + "/healthz")
			if err != nil {
				t.Fatalf("the next request: %v", err)
			}
			next.Body.Close()
			if got := strings.Count(lines.String(), "msg=request") - before; got > 2 {
				t.Errorf("%d lines in the log for two requests", got)
			}
		})
	}
	if got := lines.String(); strings.Count(got, "\n") != strings.Count(got, "\ntime=")+1 || strings.ContainsAny(got, "\x00\r\x1b") {
		t.Errorf("the log was forged: %q", got)
	}
}

// TestFlood: submissions, cancels, lists and polls race, and every task ends exactly once.
func TestFlood(t *testing.T) {
	a := newApp(config{workers: 2, queue: 50, keep: 100}, discard)
	if err := a.tasks.Start(""); err != nil {
		t.Fatal(err)
	}
	h := a.handler()
	var accepted, refused atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			for n := range 500 {
				w := do(h, "POST", "/tasks", `{"kind":"primes","input":{"n":1000}}`, "Content-Type", "application/json")
				switch w.Code {
				case 202:
					accepted.Add(1)
				case 503:
					refused.Add(1)
					if w.Header().Get("Retry-After") == "" {
						t.Error("a 503 without Retry-After")
					}
				default:
					t.Errorf("got %d %s", w.Code, w.Body)
				}
				target := w.Header().Get("Location")
				switch {
				case target == "":
				case n%3 == 0:
					if w := do(h, "DELETE", target, ""); w.Code != 200 && w.Code != 409 && w.Code != 410 {
						t.Errorf("cancel: %d %s", w.Code, w.Body)
					}
				case n%3 == 1:
					if w := do(h, "GET", target, "", "Prefer", "wait=5"); w.Code != 410 && !strings.Contains(w.Body.String(), `_at"`) {
						t.Errorf("poll: %d %s", w.Code, w.Body)
					}
				default:
					do(h, "GET", "/tasks?status=running", "")
				}
			}
		})
	}
	clients.Wait()
	if err := a.tasks.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	counts := a.tasks.Counts()
	if got := counts[Succeeded] + counts[Canceled]; int64(got) != accepted.Load() || counts[Queued]+counts[Running]+counts[Failed] != 0 {
		t.Errorf("%d were accepted, and they became %v", accepted.Load(), counts)
	}
	if accepted.Load()+refused.Load() != 4000 || len(a.tasks.jobs) > 100 {
		t.Errorf("%d accepted, %d refused, %d kept", accepted.Load(), refused.Load(), len(a.tasks.jobs))
	}
}

// TestKillLosesNoAcknowledgedTask kills the program at random points under load, 20 times, and
// asks the next one for every task that was acknowledged.
func TestKillLosesNoAcknowledgedTask(t *testing.T) {
	path := journalOf(t)
	var mu sync.Mutex
	acknowledged := map[string]time.Time{} // when it finished, if that was seen
	for round := range 21 {
		p := start(t, "-journal", path, "-workers", "2", "-queue", "100000", "-keep", "100000")
		ask := func(id string) (task Task) {
			resp, err := http.Get(p.url + "/tasks/" + id)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("round %d: task %s: %s", round, id, resp.Status)
			} else if err := json.NewDecoder(resp.Body).Decode(&task); err != nil {
				task = Task{} // the kill cut it off
			}
			return task
		}
		for id, finished := range acknowledged {
			if task := ask(id); task.ID != id {
				t.Fatalf("round %d: asked for %s, got %+v", round, id, task)
			} else if !finished.IsZero() && !task.FinishedAt.Equal(finished) {
				t.Errorf("round %d: %s had finished at %v, and now %s at %v", round, id, finished, task.Status, task.FinishedAt)
			}
		}
		if round == 20 {
			for len(acknowledged) > 0 { // and each comes to its end
				for id := range acknowledged {
					if ask(id).Status.Finished() {
						delete(acknowledged, id)
					}
				}
			}
			p.Kill()
			<-p.exited
			break
		}
		var clients sync.WaitGroup
		enough := make(chan bool)
		closeEnough := sync.OnceFunc(func() { close(enough) })
		left := atomic.Int64{}
		left.Store(rand.Int64N(60))
		for range 4 {
			clients.Go(func() {
				for {
					resp, err := http.Post(p.url+"/tasks", "application/json", strings.NewReader(`{"kind":"primes","input":{"n":20000}}`))
					if err != nil {
						return
					}
					var task Task
					err = json.NewDecoder(resp.Body).Decode(&task)
					resp.Body.Close()
					if err != nil {
						return // the kill cut it off
					}
					if resp.StatusCode != 202 {
						t.Errorf("round %d: got %s", round, resp.Status)
						closeEnough()
						return
					}
					mu.Lock()
					acknowledged[task.ID] = time.Time{}
					mu.Unlock()
					if task := ask(task.ID); task.Status.Finished() {
						mu.Lock()
						acknowledged[task.ID] = task.FinishedAt
						mu.Unlock()
					}
					if left.Add(-1) < 0 {
						closeEnough()
					}
				}
			})
		}
		<-enough
		p.Kill()
		clients.Wait()
		<-p.exited
	}
}

// ---- README.md and README.ko.md

var readmes = []string{"README.md", "README.ko.md"}

// blocks returns the fenced blocks of a file in one language, or all of them for "".
func blocks(t *testing.T, file, language string) (blocks []string) {
	t.Helper()
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(read(t, file), -1) {
		if language == "" || language == m[1] {
			blocks = append(blocks, m[2])
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("%s has no block of %q", file, language)
	}
	return blocks
}

// table returns the first cells of the rows of the table under a header.
func table(t *testing.T, file, header string) (rows [][]string) {
	t.Helper()
	_, after, ok := strings.Cut(read(t, file), "\n"+header)
	if !ok {
		t.Fatalf("%s has no table %q", file, header)
	}
	for line := range strings.Lines(after) {
		if line == "\n" && len(rows) > 0 {
			break
		}
		if strings.HasPrefix(line, "| ") {
			cells := strings.Split(strings.Trim(line, "| \n"), "|")
			for i := range cells {
				cells[i] = strings.Trim(cells[i], " `")
			}
			rows = append(rows, cells)
		}
	}
	return rows
}

func TestReadmesHaveTheSameCode(t *testing.T) {
	english, korean := blocks(t, readmes[0], ""), blocks(t, readmes[1], "")
	if len(english) != len(korean) {
		t.Fatalf("%d blocks in English, %d in Korean", len(english), len(korean))
	}
	for i := range english {
		if english[i] != korean[i] {
			t.Errorf("block %d is\n%s\nin English, and in Korean\n%s", i, english[i], korean[i])
		}
	}
}

// volatile are the parts of a transcript that change from run to run, and what they are taken for.
var volatile = []struct {
	shape *regexp.Regexp
	name  string
}{
	{regexp.MustCompile(`\b[a-z2-7]{8}-[1-9]\d*\b`), "ID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{regexp.MustCompile(`\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT`), "DATE"},
	{regexp.MustCompile(`(request_id":"|Request-Id: )[0-9a-f]{16}\b`), "$1"},
	{regexp.MustCompile(`Content-Length: \d+`), "LENGTH"}, // it counts the digits of the others
}

func shapeOf(transcript string) string {
	for _, v := range volatile {
		transcript = v.shape.ReplaceAllString(transcript, v.name)
	}
	return strings.TrimSpace(strings.ReplaceAll(transcript, "\r", ""))
}

// curl does what the curl of a README line would, with the options that the READMEs use.
func curl(t *testing.T, addr, command string) string {
	t.Helper()
	var words []string
	for _, m := range regexp.MustCompile(`'([^']*)'|(\S+)`).FindAllStringSubmatch(command, -1) {
		words = append(words, m[1]+m[2])
	}
	method, target, body, include, header := "GET", "", "", false, ""
	for i := 1; i < len(words); i++ {
		switch words[i] {
		case "-i":
			include = true
		case "-X":
			i++
			method = words[i]
		case "-H":
			i++
			header += words[i] + "\r\n"
		case "--json":
			i++
			method, body = "POST", words[i]
			header += "Content-Type: application/json\r\nAccept: application/json\r\n"
		default:
			target = strings.TrimPrefix(words[i], "localhost:8000")
		}
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost:8000\r\n%sContent-Length: %d\r\n\r\n%s", method, target, header, len(body), body)
	var raw bytes.Buffer
	resp, err := http.ReadResponse(bufio.NewReader(io.TeeReader(conn, &raw)), nil)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	if include {
		return raw.String()
	}
	return string(content)
}

func TestReadmeTranscriptsHold(t *testing.T) {
	a, _ := newTestApp(t, discard)
	srv := serveApp(t, a)
	lastID, played := "", 0
	for _, block := range blocks(t, readmes[0], "console") {
		for part := range strings.SplitSeq("\n"+block, "\n$ ") {
			command, want, _ := strings.Cut(part, "\n")
			if !strings.HasPrefix(command, "curl ") {
				continue
			}
			played++
			if !strings.Contains(command, "aaaaaaaa") { // which stands for another run's
				command = volatile[0].shape.ReplaceAllString(command, lastID)
			}
			got := curl(t, srv.Listener.Addr().String(), command)
			if shapeOf(got) != shapeOf(want) {
				t.Errorf("$ %s\ngot\n%s\nwant\n%s", command, got, want)
			}
			if id := volatile[0].shape.FindString(got); id != "" {
				lastID = id
			}
		}
	}
	if played < 8 {
		t.Errorf("only %d curl lines were found", played)
	}
}

// TestReadmeGoCompiles: a snippet is a file, beside the lesson or the app that its first line
// names, or it is lifted from the program to the letter.
func TestReadmeGoCompiles(t *testing.T) {
	dir := t.TempDir()
	put := func(path, content string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	var program string
	for _, file := range files {
		program += read(t, file)
	}
	put("go.mod", read(t, "go.mod"))
	first := regexp.MustCompile(`^// (\w+\.go), beside (\S+)`)
	for i, block := range blocks(t, readmes[0], "go") {
		m := first.FindStringSubmatch(block)
		if m == nil {
			if !strings.Contains(program, block) {
				t.Errorf("this is no part of the program:\n%s", block)
			}
			continue
		}
		pkg := fmt.Sprintf("snippet%d/", i)
		put(pkg+m[1], block)
		for _, file := range files {
			if m[2] == file || m[2] == "the" {
				put(pkg+file, read(t, file))
			}
		}
	}
	vet := exec.Command("go", "vet", "./...")
	vet.Dir = dir
	if out, err := vet.CombinedOutput(); err != nil {
		t.Errorf("go vet: %v\n%s", err, out)
	}
}

func TestReadmeListsEveryFlag(t *testing.T) {
	var usage bytes.Buffer
	run(t.Context(), []string{"-h"}, &usage)
	flags := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^  -(\S+).*\n.*?(?:\(default "?([^")]*)"?\))?$`).FindAllStringSubmatch(usage.String(), -1) {
		flags["-"+m[1]] = m[2]
	}
	for file, header := range map[string]string{readmes[0]: "| flag |", readmes[1]: "| 플래그 |"} {
		listed := map[string]string{}
		for _, row := range table(t, file, header) {
			listed[row[0]] = row[1]
		}
		if !strings.Contains(listed["-workers"], "GOMAXPROCS") {
			t.Errorf("%s: the default of -workers is %q", file, listed["-workers"])
		}
		listed["-workers"] = flags["-workers"] // a number, which depends on the machine
		if !maps.Equal(listed, flags) {
			t.Errorf("%s lists %v, and there are %v", file, listed, flags)
		}
	}
}

func TestReadmeListsEveryRoute(t *testing.T) {
	var want []string
	for _, r := range (&app{}).routes().Routes() {
		want = append(want, r.Method+" "+r.Path)
	}
	slices.Sort(want)
	for file, header := range map[string]string{readmes[0]: "| method |", readmes[1]: "| 메서드 |"} {
		var got []string
		for _, row := range table(t, file, header) {
			got = append(got, row[0]+" "+row[1])
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s lists\n%q, and there are\n%q", file, got, want)
		}
	}
}

// BenchmarkHandler is the price of all that stands around a handler: log, id, recovery, routing.
func BenchmarkHandler(b *testing.B) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	bare := http.NewServeMux()
	bare.HandleFunc("GET /users/{username}", func(w http.ResponseWriter, r *http.Request) {
		WriteJSON(w, http.StatusOK, user{r.PathValue("username")})
	})
	log := slog.New(slog.NewTextHandler(null, nil))
	b.Run("bare ServeMux", func(b *testing.B) { benchmarkHandler(b, bare) })
	b.Run("whole app", func(b *testing.B) { benchmarkHandler(b, newApp(config{}, log).handler()) })
	b.Run("whole app, log off", func(b *testing.B) { benchmarkHandler(b, newApp(config{}, discard).handler()) })
	b.Run("log line alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			log.LogAttrs(b.Context(), slog.LevelInfo, "request", slog.String("method", "GET"),
				slog.String("path", "/users/Rick"), slog.String("route", "/users/{username}"), slog.Int("status", 200),
				slog.Int("bytes", 20), slog.Duration("duration", time.Microsecond), slog.String("request_id", "1"))
		}
	})
}

// BenchmarkSubmit is what the journal costs, over HTTP.
func BenchmarkSubmit(b *testing.B) {
	for _, journal := range []string{"", filepath.Join(b.TempDir(), "tasks.jsonl")} {
		name := "in memory"
		if journal != "" {
			name = "with a journal"
		}
		b.Run(name, func(b *testing.B) {
			a := newApp(config{workers: 1, queue: math.MaxInt, keep: 1000}, discard)
			if err := a.tasks.Start(journal); err != nil {
				b.Fatal(err)
			}
			defer closeNow(a.tasks)
			srv := httptest.NewServer(a.handler())
			defer srv.Close()
			b.RunParallel(func(pb *testing.PB) {
				client := &http.Client{Transport: &http.Transport{}}
				defer client.CloseIdleConnections()
				for pb.Next() {
					resp, err := client.Post(srv.URL+"/tasks", "application/json", strings.NewReader(`{"kind":"primes","input":{"n":2}}`))
					if err != nil {
						b.Fatal(err)
					}
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			})
		})
	}
}

// BenchmarkGetWhileTasksRun is the lecture's promise: requests stay fast while tasks compute. The
// server is a process of its own, since the client would compete with the tasks otherwise; try it
// with GOMAXPROCS=1 too. What counts are the percentiles of busy beside those of idle.
func BenchmarkGetWhileTasksRun(b *testing.B) {
	p := start(b, "-log", "json")
	get := func() time.Duration {
		begin := time.Now()
		resp, err := http.Get(p.url + "/users/Rick")
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return time.Since(begin)
	}
	for _, name := range []string{"idle", "busy"} {
		b.Run(name, func(b *testing.B) {
			if name == "busy" {
				for range 100 {
					resp, err := http.Post(p.url+"/tasks", "application/json", strings.NewReader(`{"kind":"primes","input":{"n":50000000}}`))
					if err != nil {
						b.Fatal(err)
					}
					resp.Body.Close()
				}
			}
			all := make([]time.Duration, 0, b.N)
			for b.Loop() {
				all = append(all, get())
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
		})
	}
}
