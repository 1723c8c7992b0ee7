// Plainapi is the advanced lecture of a FastAPI course, in plain net/http: routers, error handling,
// background tasks, and startup and shutdown events, with the standard library alone.
//
//	go run .        # then open http://localhost:8000/docs
//	go test ./...
//
//	GET    /users/  /users/{username}  /orders/  /orders/me
//	GET    /v1/{item_id}  /v2/{item_id}     a bare 500; a 404 that says why
//	POST   /tasks                           answered at once; Prefer: wait=5
//	GET    /tasks  /tasks/{id}
//	DELETE /tasks/{id}
//	GET    /healthz  /readyz  /docs
//
// main.go is the app. Each of router.go, errors.go, tasks.go and lifecycle.go is one lesson, needs
// no other file, and can be copied alone. Read them in that order.
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
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stderr))
}

// run is main with all that it depends on as arguments. It returns the exit code: 0, 1 for what
// went wrong, 2 for flags that make no sense.
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
	defer a.stop()
	ln, err := net.Listen("tcp", c.addr) // before any hook: a taken port is the commonest mistake
	if err != nil {
		a.log.Error("can't listen: name another address with -addr", "cause", err)
		return 1
	}
	host, _, _ := net.SplitHostPort(c.addr)
	_, port, _ := net.SplitHostPort(ln.Addr().String()) // another one than in -addr, if that was 0
	a.home = "http://" + net.JoinHostPort(cmp.Or(host, "localhost"), port)
	if err := a.lifecycle.Run(ctx, ln, a.server()); err != nil {
		a.log.Error("plainapi failed", "cause", err)
		return 1
	}
	return 0
}

// config is what the flags say.
type config struct {
	addr, journal, items, log string
	workers, queue, keep      int
	grace, linger             time.Duration
}

func parseFlags(args []string, stderr io.Writer) (c config, err error) {
	fs := flag.NewFlagSet("plainapi", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.StringVar(&c.addr, "addr", "localhost:8000", "where to listen, `host:port`")
	fs.IntVar(&c.workers, "workers", max(1, runtime.GOMAXPROCS(0)-1), "how many tasks run at once")
	fs.IntVar(&c.queue, "queue", 1000, "how many tasks may wait for a worker")
	fs.IntVar(&c.keep, "keep", 1000, "how many finished tasks can still be fetched")
	fs.StringVar(&c.journal, "journal", "", "the `file` that tasks survive a crash in; none: in memory only")
	fs.StringVar(&c.items, "items", "", "a JSON `file` with the items, {\"1\": \"name\"}; none: the lecture's")
	fs.DurationVar(&c.grace, "grace", 20*time.Second, "how long a stop may take")
	fs.DurationVar(&c.linger, "linger", 2*time.Second, "how long a busy server serves on after the drain")
	fs.StringVar(&c.log, "log", "text", "the log's `format`, text or json")
	if err := fs.Parse(args); err != nil {
		return c, err // Parse has printed it, and the usage
	}
	switch {
	case fs.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case c.addr == "":
		err = errors.New("-addr must not be empty") // "" would be any free port, open to every network
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

// app is what the handlers share.
type app struct {
	log        *slog.Logger
	home       string // the URL that the server answers at
	lifecycle  *Lifecycle
	tasks      *Tasks
	processors processors
	items      map[int64]string // written once, at startup
	served     atomic.Int64     // requests

	stopping context.Context // ends with stop, and with it every waiting poll
	stop     context.CancelFunc
}

// newApp wires the lessons together. Its hooks start before the first request, in this order, and
// stop after the last one, in reverse. A hook that a task needs stands before "tasks", which may
// have tasks to run as soon as it has read the journal.
func newApp(c config, log *slog.Logger) *app {
	a := &app{log: log, lifecycle: &Lifecycle{Log: log, Grace: c.grace, Linger: c.linger}}
	a.stopping, a.stop = context.WithCancel(context.Background())
	a.tasks = NewTasks(Config{
		Kinds: a.kinds(), Workers: c.workers, Queue: c.queue, Keep: c.keep, Error: a.taskProblem, Log: log,
	})
	a.lifecycle.Add(Hook{
		Name:  "items", // on_event("startup"): where the lecture loads its model
		Start: func(context.Context) error { return a.loadItems(c.items) },
	})
	a.lifecycle.Add(Hook{
		Name:  "tasks",
		Start: func(context.Context) error { return a.tasks.Start(c.journal) },
		Drain: a.tasks.Stop,
		Stop:  a.tasks.Stop, // again, for the tasks that Drain had to cut off
	})
	a.lifecycle.Add(Hook{
		Name:  "log", // the last to start, and on_event("shutdown"): where the lecture saves its log
		Start: func(context.Context) error { log.Info("listening", "url", a.home+"/docs"); return nil },
		Stop:  a.report,
	})
	return a
}

// writeTimeout is how long a reply may take, from the end of the request's header. A waiting poll
// extends it.
const writeTimeout = 30 * time.Second

// server is an http.Server that no client can hold up for long: the zero value has no timeouts.
// ReadTimeout is shorter than WriteTimeout, so that a body that came too slowly can still be
// answered, and shorter than the default of -grace, so that a stop does not cut that answer off.
func (a *app) server() *http.Server {
	srv := &http.Server{
		Handler:           a.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	srv.RegisterOnShutdown(a.stop)
	return srv
}

// handler is the whole of what answers a request, from the outside in.
func (a *app) handler() http.Handler {
	sameOrigin := http.NewCrossOriginProtection()
	sameOrigin.SetDenyHandler(Endpoint(func(http.ResponseWriter, *http.Request) error {
		return Errorf(http.StatusForbidden, "a page of another origin may not change anything here")
	}))
	next := sameOrigin.Handler(a.routes().Handler())
	return Observe(a.log, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.served.Add(1) // for the report
		next.ServeHTTP(w, r)
	}))
}

// routes are all there are. Their handlers follow in this order.
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

// noMatch is the router's 404 and 405 in the format of every other error.
func (a *app) noMatch(w http.ResponseWriter, r *http.Request) error {
	if allow := w.Header().Get("Allow"); allow != "" {
		return Errorf(http.StatusMethodNotAllowed, "this path allows %s", allow)
	}
	return Errorf(http.StatusNotFound, "there is nothing at this path")
}

// noStore keeps a cache from answering with what was true a moment ago.
func noStore(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

type user struct {
	Username string `json:"username"`
}

func (a *app) readUsers(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, []user{{"Rick"}, {"Morty"}})
}

func (a *app) readUser(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, user{r.PathValue("username")})
}

type order struct {
	Order string `json:"order"`
}

func (a *app) readOrders(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, []order{{"Taco"}, {"Burritto"}})
}

func (a *app) readOrderMe(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, map[string]string{"my_order": "taco"})
}

// loadItems is the startup event. The items are the lecture's, unless there is a file.
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
		return fmt.Errorf("%s: want an object, not null", path)
	}
	return nil
}

// report is the shutdown event.
func (a *app) report(context.Context) error {
	n := a.tasks.Counts()
	a.log.Info("served", "requests", a.served.Load(), "queued", n[Queued], "running", n[Running],
		"succeeded", n[Succeeded], "failed", n[Failed], "canceled", n[Canceled])
	return nil
}

// findItemV1 is the lecture's bad example: for a missing item the client gets a bare 500.
func (a *app) findItemV1(w http.ResponseWriter, r *http.Request) error {
	id, err := PathInt(r, "item_id")
	if err != nil {
		return err
	}
	item, ok := a.items[id]
	if !ok {
		return fmt.Errorf("no item %d", id) // Python's KeyError: no one caught it
	}
	return WriteJSON(w, http.StatusOK, item)
}

// findItemV2 tells the client why.
func (a *app) findItemV2(w http.ResponseWriter, r *http.Request) error {
	id, err := PathInt(r, "item_id")
	if err != nil {
		return err
	}
	item, ok := a.items[id]
	if !ok {
		return Errorf(http.StatusNotFound, "아이템을 찾을 수 없습니다 [id: %d]", id)
	}
	return WriteJSON(w, http.StatusOK, item)
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
		return Errorf(http.StatusBadRequest, "the query is malformed").Because(err)
	}
	status := Status(query.Get("status"))
	if status != "" && !slices.Contains(Statuses, status) {
		return Invalid(FieldError{[]string{"query", "status"}, fmt.Sprintf("must be one of %v", Statuses)})
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

// await waits for the task to finish as long as the client prefers to, and returns it as it is
// then. It ends early when the server shuts down, or the client leaves.
func (a *app) await(w http.ResponseWriter, r *http.Request, task Task) (Task, error) {
	seconds, ok := preferWait(r.Header)
	if !ok {
		return task, nil
	}
	w.Header().Set("Preference-Applied", fmt.Sprintf("wait=%d", seconds))
	wait := time.Duration(seconds) * time.Second

	err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(wait + writeTimeout))
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return task, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	unregister := context.AfterFunc(a.stopping, cancel) // the wait ends with the server
	defer unregister()
	if waited, err := a.tasks.Wait(ctx, task.ID); err == nil {
		task = waited // else it has finished and is forgotten since
	}
	return task, r.Context().Err()
}

// preferences finds "wait=5" among the preferences of a Prefer field (RFC 7240), wherever its number
// is followed by a comma, a parameter or the end. The first half of the expression takes
// quoted strings, so that the second half can't look into one.
var preferences = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|(?:^|,)[ \t]*(?i:wait)[ \t]*=[ \t]*([0-9]+)[ \t]*(?:[,;]|$)`)

// preferWait returns the seconds of "Prefer: wait=5", 30 at most. What is malformed is ignored, as
// the RFC wants; of several the first counts.
func preferWait(h http.Header) (seconds int, ok bool) {
	all := strings.Join(h.Values("Prefer"), ",") // several lines are one list (RFC 9110, 5.3)
	for _, match := range preferences.FindAllStringSubmatch(all, -1) {
		if match[1] != "" { // else it is a quoted string
			n, _ := strconv.Atoi(match[1]) // of a number that is too long it is the largest int
			return min(n, 30), true
		}
	}
	return 0, false
}

// taskError maps the errors of tasks.go to HTTP statuses. What is an HTTPError already, of a Check
// or a Run, stays as it is.
func (a *app) taskError(err error) error {
	if _, ok := errors.AsType[*HTTPError](err); ok {
		return err
	}
	if errors.Is(err, ErrUnknownKind) {
		names := strings.Join(slices.Sorted(maps.Keys(a.kinds())), " or ")
		return Invalid(FieldError{[]string{"body", "kind"}, "must be a kind of task: " + names})
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
			if err != known.err { // the log can be told more
				e = e.Because(err)
			}
			return e
		}
	}
	return err
}

// taskProblem is what a client may know of a task's error: what it would of a request's.
func (a *app) taskProblem(err error) json.RawMessage {
	problem, _ := encode(NewProblem(a.taskError(err))) // strings and a number: it can't fail
	return problem
}

func (a *app) healthz(w http.ResponseWriter, r *http.Request) error {
	return WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (a *app) readyz(w http.ResponseWriter, r *http.Request) error {
	if !a.lifecycle.Ready() || !a.tasks.Ready() {
		e := Errorf(http.StatusServiceUnavailable, "not ready: stopping, or without a journal")
		e.Header.Set("Retry-After", "1")
		return e
	}
	return a.healthz(w, r)
}

// kinds are the kinds of tasks. It is a method so that a kind can use what a hook has loaded: the
// items, or a model.
func (a *app) kinds() map[string]Kind {
	return map[string]Kind{
		"sleep":  kindOf(sleepInput{WaitTime: 3}, sleep),
		"primes": kindOf(primesInput{}, a.countPrimes),
	}
}

// kindOf makes a Kind of a function that takes its input as a type. What a client leaves out is as
// in defaults, which is copied for each task: keep maps, slices and pointers out of it.
func kindOf[T any](defaults T, run func(ctx context.Context, input T, progress func(float64)) (any, error)) Kind {
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
		Run: func(ctx context.Context, input json.RawMessage, progress func(float64)) (any, error) {
			v, err := decode(input)
			if err != nil {
				return nil, err // a journal has it from a version that took it
			}
			return run(ctx, v, progress)
		},
	}
}

// processors raises GOMAXPROCS, while tasks compute on all of Go's processors, to one more than
// there are such tasks. Without one for the requests, the scheduler looks at the network every
// 10 ms; with it, the operating system shares the CPUs out. For good it would slow an idle server
// down. A task that waits needs none of this: it leaves its processor to others anyway.
type processors struct {
	mu   sync.Mutex // guards the rest
	busy int        // how many tasks compute
	own  int        // GOMAXPROCS before it was raised; 0 if it is not
}

// add is called with 1 when a task begins to compute, and with -1 when it ends.
func (p *processors) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy += n
	if own := cmp.Or(p.own, runtime.GOMAXPROCS(0)); p.busy >= own {
		p.own = own
		runtime.GOMAXPROCS(p.busy + 1)
	} else if p.own > 0 {
		p.own = 0
		runtime.SetDefaultGOMAXPROCS() // Go itself keeps the number up to date again,
		if runtime.GOMAXPROCS(0) != own {
			runtime.GOMAXPROCS(own) // unless it was set by hand, or in the environment
		}
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

// sleep is the lecture's task: it takes wait_time seconds.
func sleep(ctx context.Context, in sleepInput, progress func(float64)) (any, error) {
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

type primesResult struct {
	Primes int `json:"primes"`
}

// countPrimes keeps a processor busy: it counts the primes up to n by trial division.
func (a *app) countPrimes(ctx context.Context, in primesInput, progress func(float64)) (any, error) {
	a.processors.add(1)
	defer a.processors.add(-1)
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
				break // i has no divisor: it would have a smaller one too
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
	return primesResult{count}, nil
}
