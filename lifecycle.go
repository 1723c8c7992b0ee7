// Lesson 4: what runs before the first request and after the last?
//
// The lecture says: load the model when the app starts, save the log when it stops:
//
//	@app.on_event("startup")
//	@app.on_event("shutdown")
//
// (on_event is deprecated; FastAPI now prefers lifespan, one function for both.)
//
// Go says: main is a function, so startup code goes before Serve, and shutdown code after it. The
// hard part is keeping the order and losing no requests:
//
//	l := &Lifecycle{Grace: 20 * time.Second, Linger: 2 * time.Second}
//	l.Add(Hook{Name: "model", Start: loadModel})
//	l.Add(Hook{Name: "log", Stop: saveLog})
//
//	ln, err := net.Listen("tcp", "localhost:8000")
//	if err != nil {
//		log.Fatal(err) // such as a port in use, before any hook has run
//	}
//	err = l.Run(context.Background(), ln, &http.Server{Handler: mux})
//
// Run returns after Ctrl-C or SIGTERM, once everything has stopped in order.
//
// This file imports only the standard library. To use it elsewhere, copy it and change the package
// clause. It needs Go 1.23, and Go 1.26 to log the signal's name.

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
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Hook is something to start and stop with the server. Any of its functions may be nil.
type Hook struct {
	Name string

	// Start runs before the first request, like on_event("startup"). A signal cancels its context,
	// so don't use that in anything that keeps running.
	Start func(context.Context) error

	// Drain runs after the signal, while requests are still served. It should refuse new work and
	// finish the work that clients wait for.
	Drain func(context.Context) error

	// Stop runs at the end, if Start succeeded, like on_event("shutdown"). By then the last request
	// has ended, unless Grace ran out first or its handler has hijacked the connection.
	Stop func(context.Context) error
}

// Lifecycle runs a server between its hooks. The zero value works, but gives requests no time to
// finish.
type Lifecycle struct {
	Log    *slog.Logger  // nil means slog.Default()
	Grace  time.Duration // time from the signal until connections are closed by force
	Linger time.Duration // maximum time a busy server serves before the drain and again after it

	hooks    []Hook
	ready    atomic.Bool
	serving  time.Time     // when Serve was called
	requests atomic.Int64  // number in flight
	answered atomic.Int64  // when the last one was answered, in nanoseconds since serving
	silent   sync.Map      // when each net.Conn without a complete header was accepted
	closing  chan struct{} // full while the listener is being closed
}

// stopTime is the time that all Stop hooks have together.
const stopTime = 5 * time.Second

// Add adds a hook. Hooks start in the order they were added, and drain and stop in reverse order.
func (l *Lifecycle) Add(h Hook) { l.hooks = append(l.hooks, h) }

// Ready reports whether the server is ready for new clients: everything has started, and no signal
// has arrived. Tell your load balancer, so that it takes the server out of rotation.
func (l *Lifecycle) Ready() bool { return l.ready.Load() }

// Run starts the hooks, serves on ln until SIGINT or SIGTERM arrives or ctx is done, and shuts down
// in order. It wraps srv.Handler and srv.ConnState to watch requests, and makes the process and the
// programs it starts ignore SIGPIPE. The error joins all errors; if it is nil, exit with code 0.
//
// A signal during startup cancels the running Start hook's context. Run waits for that hook, starts
// no other, and stops those that have started; this is not an error. A second signal kills the
// process at once, whatever it is doing, unless the signal was ignored when the process started.
func (l *Lifecycle) Run(ctx context.Context, ln net.Listener, srv *http.Server) error {
	defer ln.Close() // in case startup ends early; otherwise Serve closes ln
	l.Log = cmp.Or(l.Log, slog.Default())
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // after stop, a signal kills the process, as by default
	// Ctrl-C also kills the tee in "2>&1 | tee log.txt", and a log line that nobody reads must not
	// kill this process.
	signal.Ignore(syscall.SIGPIPE)

	started, err := l.start(ctx)
	if err == nil && ctx.Err() == nil {
		err = l.serve(ctx, stop, ln, srv)
	}

	// ctx may be done, but stopping takes time, hence WithoutCancel.
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

// start runs the Start hooks in order, and returns the hooks that have started and must be stopped.
func (l *Lifecycle) start(ctx context.Context) (started []Hook, err error) {
	for _, h := range l.hooks {
		if err = call(ctx, "start", h.Name, h.Start); err == nil {
			started = append(started, h)
		}
		if ctx.Err() != nil {
			l.Log.Info("startup interrupted", "cause", context.Cause(ctx), "hook", h.Name, "error", err)
			return started, nil
		}
		if err != nil {
			return started, err
		}
	}
	return started, nil
}

// serve serves until ctx is done, and then until clients have their responses or Grace is over.
// Every step before Shutdown gets at most half of the remaining Grace.
func (l *Lifecycle) serve(ctx context.Context, stop func(), ln net.Listener, srv *http.Server) error {
	srv.Handler = l.watch(srv.Handler)
	srv.ConnState = l.watchConns(srv.ConnState)
	l.closing = make(chan struct{}, 1)
	l.serving = time.Now()
	l.answered.Store(int64(-l.Linger)) // no request was answered lately
	l.ready.Store(true)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	var cause error
	select {
	case <-ctx.Done():
		cause = context.Cause(ctx)
	case cause = <-served: // the listener failed
		served <- cause // for closeListener
	}
	stop() // without waiting for AfterFunc, so that the next log line is true
	l.ready.Store(false)
	l.Log.Info("draining; a second signal ends the program at once", "cause", cause, "grace", l.Grace)

	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.Grace)
	defer cancel()
	end, _ := grace.Deadline()
	half := func() time.Duration { return time.Until(end) / 2 }
	l.linger(half()) // load balancers see that the server is not ready; it still serves everything
	err := l.drain(grace, half())
	l.linger(half()) // clients fetch their results

	l.Log.Info("shutting down")
	err = errors.Join(err, l.closeListener(ln, served))
	l.settle(half())
	if late := srv.Shutdown(grace); late != nil {
		err = errors.Join(err, fmt.Errorf("connections were closed by force: %w", late), srv.Close())
	}
	return err
}

// watch counts requests and records when they are answered. After the signal, its responses ask
// clients to close their connections. http.Server.SetKeepAlivesEnabled(false) does that too, but it
// also closes idle connections, even if a request is already on its way.
func (l *Lifecycle) watch(next http.Handler) http.Handler {
	if next == nil {
		next = http.DefaultServeMux // as http.Server does
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		defer func() {
			l.answered.Store(int64(time.Since(l.serving)))
			l.requests.Add(-1)
		}()
		if !l.Ready() {
			l.closing <- struct{}{} // waits while closeListener has filled it
			<-l.closing
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

// watchConns tracks the connections that have not sent a complete header yet.
func (l *Lifecycle) watchConns(next func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			l.silent.Store(c, time.Now())
		} else {
			l.silent.Delete(c)
		}
		if next != nil {
			next(c, state)
		}
	}
}

// linger keeps a busy server serving. Meanwhile load balancers take it out of rotation, and clients
// close their connections, as asked. Shutdown would close idle keep-alive connections even if a
// request is on its way. An idle server does not linger.
func (l *Lifecycle) linger(most time.Duration) {
	quiet := time.Since(l.serving) - time.Duration(l.answered.Load())
	if l.Linger > 0 && (l.requests.Load() > 0 || quiet < l.Linger) {
		linger := min(l.Linger, most)
		l.Log.Info("lingering", "for", linger.Round(time.Millisecond))
		time.Sleep(linger)
	}
}

// drain runs the Drain hooks in reverse order.
func (l *Lifecycle) drain(ctx context.Context, most time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for _, h := range slices.Backward(l.hooks) {
		err = errors.Join(err, call(ctx, "drain", h.Name, h.Drain))
	}
	return err
}

// closeListener closes ln and waits for Serve, after which every connection is known. It returns the
// error of a listener that has failed by itself.
//
// Closing ln resets connections that the kernel has established but Serve has not accepted. So
// closeListener first holds back all requests for a moment: clients that wait for a response open no
// other connections, and Serve accepts those that there are.
func (l *Lifecycle) closeListener(ln net.Listener, served <-chan error) error {
	l.closing <- struct{}{}
	defer func() { <-l.closing }()
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-served:
		return err
	default:
		ln.Close()
		<-served
		return nil
	}
}

// settle waits for connections that have not sent a complete header yet, since Shutdown would drop
// their requests. It closes any that still have not after 5 seconds, and all of them when its time
// is over.
//
// Three kinds of requests can still be lost: one that arrives at the instant of Shutdown, one whose
// header arrives slowly on a keep-alive connection, and one on a connection that is established at
// the instant when the listener is closed.
func (l *Lifecycle) settle(most time.Duration) {
	end := time.Now().Add(most)
	for waiting := true; waiting; time.Sleep(10 * time.Millisecond) { // polls, as Shutdown does
		waiting = false
		l.silent.Range(func(conn, since any) bool {
			if now := time.Now(); now.Before(end) && now.Sub(since.(time.Time)) < 5*time.Second {
				waiting = true
			} else {
				conn.(net.Conn).Close()
			}
			return true
		})
	}
}

// call runs one of a hook's functions, unless it is nil.
func call(ctx context.Context, verb, name string, f func(context.Context) error) error {
	if f == nil {
		return nil
	}
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s %s: %w", verb, name, err)
	}
	return nil
}
