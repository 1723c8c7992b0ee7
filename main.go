// Plainapi rebuilds the advanced lecture of a FastAPI course in plain net/http: routers, error
// handling, background tasks, startup and shutdown. It uses only the standard library.
//
//	go run .        # then open http://localhost:8000/docs
//	go test ./...
//
//	GET    /users/  /users/{username}  /orders/  /orders/me
//	GET    /v1/{item_id}  /v2/{item_id}     an unknown item gets a bare 500 in v1, a 404 in v2
//	POST   /tasks                           answers at once, or waits with Prefer: wait=5
//	GET    /tasks  /tasks/{id}
//	DELETE /tasks/{id}
//	GET    /healthz  /readyz  /docs
//
// main.go is the app. router.go, errors.go, tasks.go and lifecycle.go are one lesson each; read
// them in that order. Each lesson needs no other file and can be copied alone.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stderr))
}

// run does main's work with its dependencies as arguments. It returns the exit code: 0, 1 for a
// failure, or 2 for invalid flags.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	c, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return 2
	}
	var handler slog.Handler = slog.NewTextHandler(stderr, nil)
	if c.log == "json" {
		handler = slog.NewJSONHandler(stderr, nil)
	}
	a := newApp(c, slog.New(handler))
	ln, err := net.Listen("tcp", c.addr) // before any hook, since a port in use is a common failure
	if err != nil {
		a.log.Error("can't listen: choose another address with -addr", "cause", err)
		return 1
	}
	host, _, _ := net.SplitHostPort(c.addr)
	_, port, _ := net.SplitHostPort(ln.Addr().String()) // the actual port, since -addr's may be 0
	a.home = "http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port)
	if err := a.lifecycle.Run(ctx, ln, a.server()); err != nil {
		a.log.Error("plainapi failed", "cause", err)
		return 1
	}
	return 0
}

// config holds the flag values.
type config struct {
	addr, journal, log   string
	workers, queue, keep int
	grace, linger        time.Duration
	items                string // the demo's
}

func parseFlags(args []string, stderr io.Writer) (c config, err error) {
	fs := flag.NewFlagSet("plainapi", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&c.addr, "addr", "localhost:8000", "`host:port` to listen on")
	fs.IntVar(&c.workers, "workers", max(1, runtime.GOMAXPROCS(0)-1), "number of tasks that can run at once")
	fs.IntVar(&c.queue, "queue", 1000, "number of tasks that can wait for a worker")
	fs.IntVar(&c.keep, "keep", 1000, "number of finished tasks that can still be fetched")
	fs.StringVar(&c.journal, "journal", "", "`file` that keeps tasks across restarts and crashes; without it, they are only in memory")
	fs.StringVar(&c.items, "items", "", "JSON `file` with the items, {\"1\": \"name\"}; without it, the lecture's items")
	fs.DurationVar(&c.grace, "grace", 20*time.Second, "time from the signal until connections are closed by force")
	fs.DurationVar(&c.linger, "linger", 2*time.Second, "maximum time a busy server keeps serving before the drain, and again after it")
	fs.StringVar(&c.log, "log", "text", "log `format`: text or json")
	if err := fs.Parse(args); err != nil {
		return c, err // Parse has already printed the usage
	}
	switch {
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case c.addr == "":
		err = errors.New("-addr must not be empty") // with "", net.Listen takes any free port
	case c.workers < 1 || c.workers > 1000:
		err = errors.New("-workers must be between 1 and 1000")
	case c.queue < 1 || c.keep < 1:
		err = errors.New("-queue and -keep must be at least 1")
	case c.grace <= 0 || c.linger < 0:
		err = errors.New("-grace must be positive, and -linger must not be negative")
	case c.log != "text" && c.log != "json":
		err = fmt.Errorf("-log must be text or json, not %q", c.log)
	}
	if err != nil {
		fmt.Fprintln(stderr, err)
		fs.Usage()
	}
	return c, err
}

// app holds what the handlers share.
type app struct {
	log       *slog.Logger
	home      string // the server's base URL
	lifecycle *Lifecycle
	tasks     *Tasks
	served    atomic.Int64 // number of requests

	items map[int64]string // the demo's; written once, at startup
}

// newApp wires the lessons together. Its hooks start in this order before the first request, and
// stop in reverse order after the last. A hook that tasks need must come before "tasks", which may
// run them as soon as it has read the journal.
func newApp(c config, log *slog.Logger) *app {
	a := &app{log: log, lifecycle: &Lifecycle{Log: log, Grace: c.grace, Linger: c.linger}}
	a.tasks = NewTasks(Config{
		Kinds: a.kinds(), Workers: c.workers, Queue: c.queue, Keep: c.keep, Error: a.taskProblem, Log: log,
	})
	a.lifecycle.Add(Hook{
		Name:  "items", // like on_event("startup"), where the lecture loads its model
		Start: func(context.Context) error { return a.loadItems(c.items) },
	})
	a.lifecycle.Add(Hook{
		Name:  "tasks",
		Start: func(context.Context) error { return a.tasks.Start(c.journal) },
		Drain: a.tasks.Stop,
		Stop:  a.tasks.Stop, // again, to wait for the tasks that Drain cut off
	})
	a.lifecycle.Add(Hook{
		Name:  "log", // its Stop is like on_event("shutdown"), where the lecture saves its log
		Start: func(context.Context) error { log.Info("listening", "url", a.home+"/docs"); return nil },
		Stop:  a.report,
	})
	return a
}

// report logs the totals at shutdown.
func (a *app) report(context.Context) error {
	n := a.tasks.Counts()
	a.log.Info("served", "requests", a.served.Load(), "queued", n[Queued], "running", n[Running],
		"succeeded", n[Succeeded], "failed", n[Failed], "canceled", n[Canceled])
	return nil
}

// writeTimeout limits the time for a response, counted from the end of the request's header. A
// waiting poll extends it.
const writeTimeout = 30 * time.Second

// server returns an http.Server with timeouts (the zero value has none), so that a slow client
// can't tie it up. ReadTimeout is shorter than WriteTimeout, so that a slow body still gets a
// response, and shorter than -grace's default, so that a shutdown doesn't cut that response off.
func (a *app) server() *http.Server {
	return &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       75 * time.Second, // over proxies' usual 60 s, so that they close first
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
}

// handler returns the app's complete handler: the routes inside the middleware for every request.
func (a *app) handler() http.Handler {
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(Endpoint(func(http.ResponseWriter, *http.Request) error {
		return Errorf(http.StatusForbidden, "a cross-origin request may not change anything here")
	}))
	root := a.routes()
	root.Use(a.observe, sameOrigin.Handler)
	return root.Handler()
}

// observe logs every request and counts it for the report.
func (a *app) observe(next http.Handler) http.Handler {
	return Observe(a.log, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.served.Add(1)
		next.ServeHTTP(w, r)
	}))
}

// routes registers every route. The handlers follow in the same order, but the demo's are last.
func (a *app) routes() *Router {
	root := NewRouter("")
	root.NoMatch = Endpoint(a.noMatch)
	root.Get("/", http.RedirectHandler("/docs", http.StatusTemporaryRedirect)).Summary = "Home"
	root.Get("/docs", root.Docs()).Summary = "Docs"

	users := NewRouter("/users", "users")
	users.Get("/", Endpoint(a.readUsers))
	users.Get("/{username}", Endpoint(a.readUser))
	root.Include(users)

	orders := NewRouter("/orders", "orders")
	orders.Get("/", Endpoint(a.readOrders))
	orders.Get("/me", Endpoint(a.readOrderMe))
	root.Include(orders)

	items := NewRouter("", "items")
	items.Get("/v1/{item_id}", Endpoint(a.findItemV1))
	items.Get("/v2/{item_id}", Endpoint(a.findItemV2))
	root.Include(items)

	tasks := NewRouter("/tasks", "tasks")
	tasks.Use(noStore)
	tasks.Post("", Endpoint(a.createTask)).Example = `{"kind": "sleep", "input": {"wait_time": 3}}`
	tasks.Get("", Endpoint(a.listTasks))
	tasks.Get("/{id}", Endpoint(a.readTask))
	tasks.Delete("/{id}", Endpoint(a.cancelTask))
	root.Include(tasks)

	health := NewRouter("", "health")
	health.Use(noStore)
	health.Get("/healthz", Endpoint(a.healthz))
	health.Get("/readyz", Endpoint(a.readyz))
	root.Include(health)
	return root
}

// noMatch answers with 404 or 405, in the same format as every other error.
func (a *app) noMatch(w http.ResponseWriter, r *http.Request) error {
	if allow := w.Header().Get("Allow"); allow != "" {
		return Errorf(http.StatusMethodNotAllowed, "this path allows %s", allow)
	}
	return Errorf(http.StatusNotFound, "no route matches this path")
}

// noStore tells caches not to store responses, which are soon out of date.
func noStore(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

func (a *app) createTask(w http.ResponseWriter, r *http.Request) error {
	var body struct {
		Kind  string          `json:"kind"`
		Input json.RawMessage `json:"input"`
	}
	if err := ReadJSON(w, r, &body); err != nil {
		return err
	}
	task, err := a.tasks.Submit(body.Kind, body.Input)
	if err != nil {
		return a.taskError(err)
	}
	if task, err = a.await(w, r, task); err != nil {
		return err
	}
	status := http.StatusAccepted
	if task.Status.Finished() {
		status = http.StatusOK
	}
	w.Header().Set("Location", "/tasks/"+task.ID)
	return writeTask(w, status, task)
}

func (a *app) listTasks(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return Errorf(http.StatusBadRequest, "malformed query").Because(err)
	}
	status := Status(query.Get("status"))
	if status != "" && !slices.Contains(Statuses, status) {
		const msg = "must be one of queued, running, succeeded, failed, canceled"
		return Invalid(FieldError{[]string{"query", "status"}, msg})
	}
	return WriteJSON(w, http.StatusOK, a.tasks.List(status, 100))
}

func (a *app) readTask(w http.ResponseWriter, r *http.Request) error {
	task, err := a.tasks.Get(r.PathValue("id"))
	if err != nil {
		return a.taskError(err)
	}
	if task, err = a.await(w, r, task); err != nil {
		return err
	}
	return writeTask(w, http.StatusOK, task)
}

func (a *app) cancelTask(w http.ResponseWriter, r *http.Request) error {
	task, err := a.tasks.Cancel(r.PathValue("id"))
	if err != nil {
		return a.taskError(err)
	}
	return writeTask(w, http.StatusOK, task)
}

func writeTask(w http.ResponseWriter, status int, task Task) error {
	if !task.Status.Finished() {
		w.Header().Set("Retry-After", "1")
	}
	return WriteJSON(w, status, task)
}

// await waits for the task to finish, at most as long as Prefer allows, and returns its latest
// state. It returns early if a shutdown leaves the task unfinished or the client disconnects.
func (a *app) await(w http.ResponseWriter, r *http.Request, task Task) (Task, error) {
	seconds, ok := preferWait(r.Header)
	if !ok {
		return task, nil
	}
	w.Header().Set("Preference-Applied", fmt.Sprintf("wait=%d", seconds))
	wait := time.Duration(seconds) * time.Second
	// If setting a deadline fails, so does the response.
	rc := http.NewResponseController(w)
	_ = rc.SetWriteDeadline(time.Now().Add(wait + writeTimeout)) // HTTP/2 would not wait for a write
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	if waited, err := a.tasks.Wait(ctx, task.ID); err == nil {
		task = waited // otherwise the task has finished and been dropped
	}
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // a suspended machine may have used it up
	return task, r.Context().Err()
}

// preferWait returns the seconds in "Prefer: wait=5" (RFC 7240), at most 30. Malformed preferences
// are ignored, as the RFC requires; the first valid wait counts.
func preferWait(h http.Header) (seconds int, ok bool) {
	all := strings.Join(h.Values("Prefer"), ",") // field lines form one list (RFC 9110, 5.3)
	for preference := range strings.SplitSeq(all, ",") {
		preference, _, _ = strings.Cut(preference, ";") // without its parameters
		name, value, _ := strings.Cut(preference, "=")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64) // n is MaxUint64 on overflow
		if strings.EqualFold(strings.TrimSpace(name), "wait") && (err == nil || errors.Is(err, strconv.ErrRange)) {
			return int(min(n, 30)), true
		}
	}
	return 0, false
}

// taskError turns tasks.go's errors into HTTPErrors. It returns any other error unchanged.
func (a *app) taskError(err error) error {
	if _, ok := errors.AsType[*HTTPError](err); ok {
		return err
	}
	switch {
	case errors.Is(err, ErrUnknownKind):
		names := strings.Join(slices.Sorted(maps.Keys(a.kinds())), ", ")
		return Invalid(FieldError{[]string{"body", "kind"}, "must be one of " + names})
	case errors.Is(err, ErrBadInput):
		return Invalid(FieldError{[]string{"body", "input"}, "must be JSON that is not nested too deeply"})
	}
	for _, known := range []struct {
		err    error
		status int
	}{
		{ErrNotFound, http.StatusNotFound},
		{ErrGone, http.StatusGone},
		{ErrFinished, http.StatusConflict},
		{ErrCanceled, http.StatusConflict},
		{ErrQueueFull, http.StatusServiceUnavailable},
		{ErrNotAccepting, http.StatusServiceUnavailable},
		{ErrStopped, http.StatusServiceUnavailable},
		{ErrCrashed, http.StatusInternalServerError},
		{ErrKindGone, http.StatusInternalServerError},
	} {
		if errors.Is(err, known.err) {
			e := Errorf(known.status, "%v", known.err)
			if known.status == http.StatusServiceUnavailable {
				e.Header.Set("Retry-After", "1")
			}
			if err != known.err { // keep the details for the log
				e = e.Because(err)
			}
			return e
		}
	}
	return err
}

// taskProblem describes a task's error to clients, as if it were a request's.
func (a *app) taskProblem(err error) json.RawMessage {
	problem, _ := encode(NewProblem(a.taskError(err))) // can't fail, since a Problem is plain data
	return problem
}

func (a *app) healthz(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (a *app) readyz(w http.ResponseWriter, r *http.Request) error {
	if !a.lifecycle.Ready() || !a.tasks.Ready() {
		e := Errorf(http.StatusServiceUnavailable, "not ready: stopping, or the journal can't be written")
		e.Header.Set("Retry-After", "1")
		return e
	}
	return a.healthz(w, r)
}

// kinds returns the kinds of task. It is a method so that a kind can use data that a hook has
// loaded, such as a model.
func (a *app) kinds() map[string]Kind {
	return map[string]Kind{
		"sleep":  kindOf(sleepInput{WaitTime: 3}, sleep),
		"primes": kindOf(primesInput{}, countPrimes),
	}
}

// kindOf makes a Kind from a function with a typed input. Fields that a client omits have their
// values from defaults, which is copied for each task and must not hold maps, slices or pointers.
func kindOf[T any](
	defaults T, run func(ctx context.Context, task Task, input T, progress func(float64)) (any, error),
) Kind {
	decode := func(input json.RawMessage) (T, error) {
		if len(input) == 0 {
			input = json.RawMessage("{}")
		}
		v := defaults
		err := DecodeJSON(input, &v, "body", "input")
		return v, err
	}
	return Kind{
		Check: func(input json.RawMessage) (json.RawMessage, error) {
			v, err := decode(input)
			if err != nil {
				return nil, err
			}
			return encode(v)
		},
		Run: func(ctx context.Context, task Task, progress func(float64)) (any, error) {
			v, err := decode(task.Input)
			if err != nil {
				return nil, err // an older version accepted this input
			}
			return run(ctx, task, v, progress)
		},
	}
}

type sleepInput struct {
	WaitTime int `json:"wait_time"`
}

func (in sleepInput) Validate() []FieldError {
	if in.WaitTime < 1 || in.WaitTime > 10 {
		return []FieldError{{[]string{"wait_time"}, "must be between 1 and 10"}}
	}
	return nil
}

// sleep does the lecture's task, which takes wait_time seconds.
func sleep(ctx context.Context, _ Task, in sleepInput, progress func(float64)) (any, error) {
	const steps = 100
	for i := range steps {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Duration(in.WaitTime) * time.Second / steps):
			progress(float64(i+1) / steps)
		}
	}
	return fmt.Sprintf("task done after %d", in.WaitTime), nil
}

type primesInput struct {
	N int `json:"n"`
}

func (in primesInput) Validate() []FieldError {
	if in.N < 2 || in.N > 50_000_000 {
		return []FieldError{{[]string{"n"}, "must be between 2 and 50000000"}}
	}
	return nil
}

// countPrimes keeps a processor busy: it counts the primes up to n by trial division.
func countPrimes(ctx context.Context, _ Task, in primesInput, progress func(float64)) (any, error) {
	count := 0
	var divisors []int // the primes up to the square root of in.N
next:
	for i := 2; i <= in.N; i++ {
		if i%1024 == 0 {
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			progress(float64(i) / float64(in.N))
		}
		for _, p := range divisors {
			if p > i/p {
				break // i is prime, since a larger divisor would come with a smaller one
			}
			if i%p == 0 {
				continue next
			}
		}
		count++
		if i <= in.N/i {
			divisors = append(divisors, i)
		}
	}
	return map[string]int{"primes": count}, nil
}

// ---- the demo: users, orders and items, as in the lecture

type user struct {
	Username string `json:"username"`
}

func (a *app) readUsers(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, []user{{"Rick"}, {"Morty"}})
}

func (a *app) readUser(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, user{r.PathValue("username")})
}

func (a *app) readOrders(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, []map[string]string{{"order": "Taco"}, {"order": "Burritto"}})
}

func (a *app) readOrderMe(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, map[string]string{"my_order": "taco"})
}

// loadItems loads the lecture's items, or the items in the file if path is not empty.
func (a *app) loadItems(path string) error {
	a.items = map[int64]string{1: "Boostcamp", 2: "AI", 3: "Tech"}
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.items = nil
	if err := json.Unmarshal(data, &a.items); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if a.items == nil {
		return fmt.Errorf("%s: must be an object, not null", path)
	}
	return nil
}

// findItemV1 follows the lecture's bad example: for a missing item the client gets a bare 500.
func (a *app) findItemV1(w http.ResponseWriter, r *http.Request) error {
	id, err := ParseInt(r.PathValue("item_id"), "path", "item_id")
	if err != nil {
		return err
	}
	item, ok := a.items[id]
	if !ok {
		return fmt.Errorf("no item %d", id) // like an uncaught KeyError in Python
	}
	return WriteJSON(w, http.StatusOK, item)
}

// findItemV2 answers 404 and tells the client why.
func (a *app) findItemV2(w http.ResponseWriter, r *http.Request) error {
	id, err := ParseInt(r.PathValue("item_id"), "path", "item_id")
	if err != nil {
		return err
	}
	item, ok := a.items[id]
	if !ok {
		return Errorf(http.StatusNotFound, "아이템을 찾을 수 없습니다 [id: %d]", id)
	}
	return WriteJSON(w, http.StatusOK, item)
}
