// Lesson 4: what runs before the first request, and what after the last?
//
// The lecture says: load the model when the app starts, save the log when it stops:
//
//	@app.on_event("startup")
//	@app.on_event("shutdown")
//
// (FastAPI now prefers one function for the two, called lifespan: on_event is deprecated.)
//
// Go says: main is a function, so "at startup" is what stands before Serve and "at shutdown" what
// stands after it. What needs care is the order, and that a stop loses nobody's request:
//
//	l := &Lifecycle{Grace: 20 * time.Second, Linger: 2 * time.Second}
//	l.Add(Hook{Name: "model", Start: loadModel})
//	l.Add(Hook{Name: "log", Stop: saveLog})
//
//	ln, err := net.Listen("tcp", "localhost:8000")
//	if err != nil {
//		log.Fatal(err) // a taken port is an error here, before any hook has run
//	}
//	err = l.Run(context.Background(), ln, &http.Server{Handler: mux})
//
// Run returns after Ctrl-C or SIGTERM, when everything has stopped in order.
//
// This file imports the standard library alone. To use it elsewhere, copy it and write your own
// package clause; it needs Go 1.23, and Go 1.26 to log the signal's name.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync/atomic"
	"syscall"
	"time"
)

// Hook is something with a beginning and an end. Any of its functions may be nil.
type Hook struct {
	Name string

	// Start runs before the first request: on_event("startup"). Its context ends with a signal,
	// and is for starting only: what goes on running must not depend on it.
	Start func(context.Context) error

	// Drain runs after the signal, while requests are still served: finish what clients wait for.
	Drain func(context.Context) error

	// Stop runs after the last request, if Start succeeded: on_event("shutdown").
	Stop func(context.Context) error
}

// Lifecycle runs a server between its hooks. The zero value works, but gives a stop no time.
type Lifecycle struct {
	Log    *slog.Logger  // nil: slog.Default()
	Grace  time.Duration // from the signal until connections are closed by force
	Linger time.Duration // how long a busy server goes on serving after the Drain hooks

	hooks       []Hook
	ready       atomic.Bool
	requests    atomic.Int64 // in flight
	lastRequest atomic.Int64 // when it was answered, in Unix nanoseconds
}

// stopTime is what all Stop hooks together are given.
const stopTime = 5 * time.Second

// Add appends a hook: it starts after those before it, and drains and stops before them.
func (l *Lifecycle) Add(h Hook) { l.hooks = append(l.hooks, h) }

// Ready reports whether the server wants new clients: everything has started, and no signal came.
func (l *Lifecycle) Ready() bool { return l.ready.Load() }

// Run starts the hooks, serves srv on ln until SIGINT or SIGTERM comes or ctx ends, and stops in
// order. It wraps srv.Handler, to know when requests are answered, and makes the process, and
// the programs that it starts, ignore SIGPIPE. The error joins all that went wrong: nil is exit
// code 0.
//
// A signal during startup ends the context of the Start hook that runs. Run waits for that hook,
// starts no other, and stops those that had started; that is no error. A second signal ends the
// process at once, whatever it is doing, unless it was ignored when the process started.
func (l *Lifecycle) Run(ctx context.Context, ln net.Listener, srv *http.Server) error {
	defer ln.Close() // for a startup that fails; after Serve it is closed already
	l.Log = cmp.Or(l.Log, slog.Default())
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // after stop a signal has its default effect: it ends the process
	// Ctrl-C ends the tee of "2>&1 | tee log.txt" too, and a log line that nobody reads must not end
	// this process.
	signal.Ignore(syscall.SIGPIPE)

	started, err := l.start(ctx)
	if err == nil && ctx.Err() == nil {
		err = l.serve(ctx, stop, ln, srv)
	}

	// ctx has ended, and to stop needs time: WithoutCancel.
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	for _, h := range slices.Backward(started) {
		err = errors.Join(err, call(stopCtx, "stop", h.Name, h.Stop))
	}
	if err == nil {
		l.Log.Info("stopped")
	}
	return err
}

// start runs the Start hooks in order, and returns those that succeeded: they are to be stopped.
func (l *Lifecycle) start(ctx context.Context) (started []Hook, err error) {
	for _, h := range l.hooks {
		if err = call(ctx, "start", h.Name, h.Start); err == nil {
			started = append(started, h)
		}
		if ctx.Err() != nil {
			l.Log.Info("startup was interrupted", "cause", context.Cause(ctx), "hook", h.Name, "error", err)
			return started, nil
		}
		if err != nil {
			return started, err
		}
	}
	return started, nil
}

// serve serves until ctx ends, and then until clients have what they came for, or Grace is over.
func (l *Lifecycle) serve(ctx context.Context, stop func(), ln net.Listener, srv *http.Server) error {
	srv.Handler = l.watch(srv.Handler)
	l.ready.Store(true)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	var cause error
	select {
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case cause = <-served: // the listener broke
		served <- cause // for the end of this function
	}
	stop() // here too, so that what the log says next is true already
	l.ready.Store(false)
	l.Log.Info("draining; a second signal ends the program at once", "cause", cause, "grace", l.Grace)

	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.Grace)
	defer cancel()
	err := l.drain(grace)
	l.linger(grace)
	l.Log.Info("shutting down")
	if late := srv.Shutdown(grace); late != nil {
		err = errors.Join(err, fmt.Errorf("connections were cut off: %w", late), srv.Close())
	}
	if end := <-served; end != http.ErrServerClosed {
		err = errors.Join(err, end)
	}
	return err
}

// watch notes when requests are answered. While the server drains, its replies ask the clients to
// close their connections. http.Server.SetKeepAlivesEnabled(false) does that too, but it also
// closes the idle ones, some of them under a request that is already on its way.
func (l *Lifecycle) watch(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux // as http.Server does
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		defer func() {
			l.lastRequest.Store(time.Now().UnixNano())
			l.requests.Add(-1)
		}()
		if !l.Ready() {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// drain runs the Drain hooks in reverse, in the first half of Grace: the other half belongs to
// the clients that fetch what was finished.
func (l *Lifecycle) drain(grace context.Context) (err error) {
	ctx, cancel := context.WithTimeout(grace, l.Grace/2)
	defer cancel()
	for _, h := range slices.Backward(l.hooks) {
		err = errors.Join(err, call(ctx, "drain", h.Name, h.Drain))
	}
	return err
}

// linger lets a busy server serve on, so that clients with kept-alive connections leave by
// themselves: Shutdown closes the idle ones, and a request may be on its way on any of them.
// A server that no one is talking to stops at once.
func (l *Lifecycle) linger(grace context.Context) {
	if l.requests.Load() > 0 || time.Since(time.Unix(0, l.lastRequest.Load())) < l.Linger {
		end, _ := grace.Deadline()
		linger := min(l.Linger, time.Until(end)/2) // half of what is left is Shutdown's
		l.Log.Info("lingering", "for", linger.Round(time.Millisecond))
		time.Sleep(linger)
	}
}

// call runs one function of a hook, if the hook has it.
func call(ctx context.Context, verb, name string, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}
