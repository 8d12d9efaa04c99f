// Temporal with workflows and activities that do nothing: temporal [-eager] (workflows | activities | local | latency) ADDRESS AMOUNT
//
// AMOUNT is seconds, for latency the number of workflows. Clients and worker are this process. What has ended is what the
// server has acknowledged as ended, seen by the worker's own calls: so only what is durable counts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/log"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
	"google.golang.org/grpc"
)

const (
	namespace, queue = "bench", "bench"
	warm             = 3 * time.Second
	apart            = 20 * time.Millisecond
	// The first of the requests at light load warm what is to be warm.
	warming = 20
)

// What was best of what was tried on two cores, but for the differences that were less than those between rounds.
var (
	clients = flag.Int("clients", 64, "clients that start workflows")
	// With more, the server writes down tasks that nobody waits for yet.
	underWay = flag.Int("under-way", 128, "started workflows that have not ended, at most")
	pollers  = flag.Int("pollers", 16, "requests that wait for work, of workflows and of activities each")
	parents  = flag.Int("parents", 10, "workflows that run activities")
	// The SDK looks at all that wait in a workflow whenever one of them goes on.
	inFlight = flag.Int("in-flight", 10, "activities at once in each of them")
	// A history is not to have more than some ten thousand events, and an activity is three. Local ones are acknowledged
	// with their workflow's task, which is one for as many as this.
	perHistory = flag.Int("per-history", 500, "activities until a workflow goes on in a new history")
	eager      = flag.Bool("eager", false, "workflows are handed to their worker in the answer to their start")
)

// What the server has acknowledged as ended, and room for workflows under way.
var (
	workflowsEnded, activitiesEnded, localsEnded atomic.Int64
	room                                         chan struct{}
)

func count(ctx context.Context, method string, request, answer any, connection *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := call(ctx, method, request, answer, connection, options...)
	if err != nil {
		return err
	}
	switch request := request.(type) {
	case *workflowservice.RespondActivityTaskCompletedRequest:
		activitiesEnded.Add(1)
	case *workflowservice.RespondWorkflowTaskCompletedRequest:
		for _, command := range request.Commands {
			switch command.CommandType {
			case enums.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION:
				workflowsEnded.Add(1)
				select {
				case <-room:
				default:
				}
			case enums.COMMAND_TYPE_RECORD_MARKER:
				localsEnded.Add(1)
			}
		}
	}
	return nil
}

// The moments of first lines, for those who ask; under load nobody does.
var inWorkflow, atCall, inActivity = make(chan time.Time, 1), make(chan time.Time, 1), make(chan time.Time, 1)

func tell(moments chan time.Time) {
	select {
	case moments <- time.Now():
	default:
	}
}

func noop(workflow.Context) error {
	tell(inWorkflow)
	return nil
}

var stopping atomic.Bool

// Its value is in the history, so a workflow that is replayed decides as it did.
func activity(context.Context) (stop bool, err error) {
	tell(inActivity)
	return stopping.Load(), nil
}

func once(ctx workflow.Context) error {
	tell(inWorkflow)
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
	tell(atCall)
	return workflow.ExecuteActivity(ctx, activity).Get(ctx, nil)
}

// Runs activities, so many at once, and goes on in a new history when its own is long.
func parent(ctx workflow.Context, local bool, atOnce, most int) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: time.Minute})
	ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: time.Minute})
	var failed error
	begun, stop := 0, false
	all := workflow.NewWaitGroup(ctx)
	for range atOnce {
		all.Add(1)
		workflow.Go(ctx, func(ctx workflow.Context) {
			defer all.Done()
			for begun < most && !stop && failed == nil {
				begun++
				var ended workflow.Future
				if local {
					ended = workflow.ExecuteLocalActivity(ctx, activity)
				} else {
					ended = workflow.ExecuteActivity(ctx, activity)
				}
				var last bool
				if err := ended.Get(ctx, &last); err != nil {
					failed = err
				}
				stop = stop || last
			}
		})
	}
	all.Wait(ctx)
	if stop || failed != nil {
		return failed
	}
	return workflow.NewContinueAsNewError(ctx, parent, local, atOnce, most)
}

// How many end each second once it is warm, until the time is up.
func rate(ended *atomic.Int64, seconds int) float64 {
	time.Sleep(warm)
	began, before := time.Now(), ended.Load()
	time.Sleep(time.Duration(seconds) * time.Second)
	return float64(ended.Load()-before) / time.Since(began).Seconds()
}

func start(temporal client.Client, what any, arguments ...any) client.WorkflowRun {
	options := client.StartWorkflowOptions{TaskQueue: queue, EnableEagerStart: *eager}
	run, err := temporal.ExecuteWorkflow(context.Background(), options, what, arguments...)
	if err != nil {
		fail(err)
	}
	return run
}

func workflows(temporal client.Client, seconds int) map[string]any {
	var starting sync.WaitGroup
	var started atomic.Int64
	for range *clients {
		starting.Go(func() {
			for !stopping.Load() {
				room <- struct{}{}
				start(temporal, noop)
				started.Add(1)
			}
		})
	}
	found := rate(&workflowsEnded, seconds)
	stopping.Store(true)
	starting.Wait()
	for workflowsEnded.Load() < started.Load() {
		time.Sleep(time.Millisecond)
	}
	return map[string]any{"rate": found, "ended": workflowsEnded.Load()}
}

func activities(temporal client.Client, seconds int, local bool) map[string]any {
	ended := &activitiesEnded
	if local {
		ended = &localsEnded
	}
	var runs []client.WorkflowRun
	began := time.Now()
	for range *parents {
		runs = append(runs, start(temporal, parent, local, *inFlight, *perHistory))
	}
	found := rate(ended, seconds)
	stopping.Store(true)
	for _, run := range runs {
		if err := run.Get(context.Background(), nil); err != nil {
			fail(err)
		}
	}
	if local {
		// Hundreds are acknowledged at once: what of them falls between two moments would be chance.
		found = float64(ended.Load()) / time.Since(began).Seconds()
	}
	return map[string]any{"rate": found, "ended": ended.Load()}
}

// Milliseconds until a start is acknowledged, until the first line of the workflow, and from there to that of its activity.
func latency(temporal client.Client, number int) map[string]any {
	found := map[string][]float64{}
	for i := range number + warming {
		time.Sleep(apart)
		began := time.Now()
		run := start(temporal, once)
		accepted := time.Now()
		first, called, active := <-inWorkflow, <-atCall, <-inActivity
		if err := run.Get(context.Background(), nil); err != nil {
			fail(err)
		}
		if i < warming {
			continue
		}
		for name, took := range map[string]time.Duration{
			"accepted": accepted.Sub(began), "workflow": first.Sub(began), "activity": active.Sub(called),
		} {
			found[name] = append(found[name], took.Seconds()*1000)
		}
	}
	return map[string]any{"accepted": found["accepted"], "workflow": found["workflow"], "activity": found["activity"]}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func main() {
	flag.Parse()
	room = make(chan struct{}, *underWay)
	if flag.NArg() != 3 {
		fail(fmt.Errorf("usage: temporal [options] (workflows | activities | local | latency) ADDRESS AMOUNT"))
	}
	mode, address := flag.Arg(0), flag.Arg(1)
	amount, err := strconv.Atoi(flag.Arg(2))
	if err != nil {
		fail(err)
	}
	errors := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	temporal, err := client.Dial(client.Options{
		HostPort: address, Namespace: namespace, Logger: log.NewStructuredLogger(errors),
		ConnectionOptions: client.ConnectionOptions{DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(count)}},
	})
	if err != nil {
		fail(err)
	}
	work := worker.New(temporal, queue, worker.Options{
		MaxConcurrentWorkflowTaskPollers: *pollers, MaxConcurrentActivityTaskPollers: *pollers,
	})
	for _, one := range []any{noop, once, parent} {
		work.RegisterWorkflow(one)
	}
	work.RegisterActivity(activity)
	if err := work.Start(); err != nil {
		fail(err)
	}
	var found map[string]any
	switch mode {
	case "workflows":
		found = workflows(temporal, amount)
	case "activities", "local":
		found = activities(temporal, amount, mode == "local")
	case "latency":
		found = latency(temporal, amount)
	default:
		fail(fmt.Errorf("%s is none of workflows, activities, local, latency", mode))
	}
	work.Stop()
	temporal.Close()
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		fail(err)
	}
}
