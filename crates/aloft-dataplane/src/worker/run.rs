//! The life of one attempt on this machine.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use aloft_core::{AttemptOutcome, ErrorKind, OutputRefs, Phase, Progress, TaskError};
use aloft_flyteidl2::flyteidl2::{core::TaskTemplate, task::TaskSpec};
use aloft_plane::{LeasedAttempt, PlaneError};
use buffa::Message;
use futures::FutureExt;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Parts, report::Reporter};
use crate::{
    checkpoint, clock,
    logs::LogSink,
    process::{AttemptDir, Exit, ExitRecord, LaunchRecord, Recovery, Results, Running, blocking, exit_record, judge},
    seam::NativeTask,
    target::target,
};

/// First and longest pause before the object store is asked again how an attempt ended.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// How long a native task has to return after it was cancelled.
const NATIVE_GRACE: Duration = Duration::from_secs(5);

/// What the worker knows about an attempt, and how it is told to stop.
pub(super) struct Attempt {
    pub parts: Arc<Parts>,
    pub leased: Arc<LeasedAttempt>,
    /// Lines for the log before the task's own.
    pub notes: Vec<String>,
    pub reporter: Reporter,
    /// The attempt is over by another hand: it must be stopped, and nothing is reported any more.
    pub over: CancellationToken,
    /// The worker stops: what runs is left running.
    pub stop: CancellationToken,
}

/// How an attempt begins.
pub(super) enum Begin {
    /// When it is admitted.
    Admitted(oneshot::Receiver<()>),
    /// Where a worker before this one left it.
    Recovered(Recovery),
    /// It cannot run here.
    Refused(AttemptOutcome),
    /// It cannot run here, for this reason, and waits until its time limit ends it.
    Waits(String),
}

/// Why the life of an attempt on this machine is at its end.
#[derive(Debug)]
pub(super) enum End {
    /// It ended so.
    Outcome(AttemptOutcome),
    /// It was over by another hand, and is dead.
    Over,
    /// The worker stops; the attempt goes on, or will be judged after the next start.
    Left,
}

impl Attempt {
    /// Runs the attempt until none of its processes lives. A failure of ours is the attempt's end, never its loss.
    pub(super) async fn run(&self, begin: Begin) -> End {
        match AssertUnwindSafe(self.live(begin)).catch_unwind().await {
            Ok(end) => end,
            Err(_) => {
                let message = "Aloft itself failed while it ran this attempt. This is a defect; its log tells more.";
                End::Outcome(AttemptOutcome::Lost(TaskError::new("Internal", message, ErrorKind::System, true)))
            }
        }
    }

    /// Reports the end and removes what the attempt leaves on disk, in this order: before the report is taken, the files
    /// are what a worker after this one judges it by.
    pub(super) async fn conclude(&self, end: End) {
        let settled = match end {
            End::Outcome(outcome) => {
                tracing::debug!(attempt = %self.leased.lease.id, "ended: {outcome:?}");
                self.reporter.end(outcome).await
            }
            End::Over => true,
            End::Left => false,
        };
        let dir = self.dir();
        if settled && let Err(e) = blocking(move || dir.settle()).await {
            tracing::warn!(attempt = %self.leased.lease.id, "what this attempt left on disk cannot be removed: {e}");
        }
    }

    fn dir(&self) -> AttemptDir {
        self.parts.executor.dirs().dir(&self.leased.lease.id)
    }

    async fn live(&self, begin: Begin) -> End {
        match begin {
            Begin::Refused(outcome) => self.refused(outcome).await,
            Begin::Waits(reason) => {
                self.reporter.progress(Progress::Waiting { reason });
                match self.unless_stopped(std::future::pending::<std::convert::Infallible>()).await {
                    Err(end) => end,
                }
            }
            Begin::Admitted(go) => tokio::select! {
                admitted = go => match admitted {
                    Ok(()) => self.start().await,
                    Err(_) => End::Left,
                },
                () = self.over.cancelled() => End::Over,
                () = self.stop.cancelled() => End::Left,
            },
            Begin::Recovered(Recovery::Launch) => self.start().await,
            Begin::Recovered(Recovery::Adopt) => {
                let running = self.parts.executor.adopt(&self.leased.lease.id);
                if self.leased.phase != Phase::Running {
                    self.reporter.progress(Progress::Running);
                }
                self.follow(running).await
            }
            Begin::Recovered(Recovery::Stop) => {
                self.parts.executor.adopt(&self.leased.lease.id).stop().await;
                let message = "The process that ran this attempt was started under a lease that is not held any more.";
                End::Outcome(AttemptOutcome::Lost(TaskError::new("LeaseLost", message, ErrorKind::System, true)))
            }
            Begin::Recovered(Recovery::Judge) => self.judge_remains().await,
        }
    }

    /// An attempt that cannot run says why in its log too.
    async fn refused(&self, outcome: AttemptOutcome) -> End {
        if let AttemptOutcome::Failed(error, _) | AttemptOutcome::Lost(error) = &outcome {
            let (dir, lease) = (self.dir(), self.leased.lease.clone());
            let lines: Vec<String> = self.notes.iter().cloned().chain([error.message.clone()]).collect();
            let write = move || {
                dir.begin(&LaunchRecord::new(&lease.id, lease.token))?;
                let mut log = crate::logs::LogWriter::append(&dir.log())?;
                for line in lines {
                    log.note(&line, clock::now());
                }
                dir.write_exit(&ExitRecord::now(Exit::NotStarted("refused".to_owned())))
            };
            if let Err(e) = blocking(write).await {
                tracing::warn!(attempt = %self.leased.lease.id, "its log cannot be written: {e}");
            }
        }
        End::Outcome(outcome)
    }

    async fn start(&self) -> End {
        self.reporter.progress(Progress::Initializing);
        let spec = match TaskSpec::decode_from_slice(&self.leased.task_spec) {
            Ok(spec) => spec,
            Err(e) => return self.refused(malformed(&format!("cannot be read: {e}"))).await,
        };
        let template: &TaskTemplate = &spec.task_template;
        if let Some(native) = self.parts.native.get(&template.r#type) {
            return self.run_native(&**native).await;
        }
        let target = match target(template) {
            Ok(target) => target,
            Err(why) => return self.refused(malformed(&why)).await,
        };
        let version = template.metadata.runtime.version.clone();
        let prepare = async {
            let env =
                self.parts.environments.resolve(&target.container.image, &version).await.map_err(
                    |error| match error.kind {
                        ErrorKind::System => AttemptOutcome::Lost(error),
                        _ => AttemptOutcome::Failed(error, OutputRefs::default()),
                    },
                )?;
            let notes = self.notes.iter().chain(&target.notes).cloned().collect();
            let leased = LeasedAttempt { previous_prefix: self.checkpointed().await, ..(*self.leased).clone() };
            self.parts.executor.prepare(&leased, template, &target, &env, notes).await
        };
        let prepared = match self.unless_stopped(prepare).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(outcome)) => return self.refused(outcome).await,
            Err(end) => return end,
        };
        match self.parts.executor.launch(prepared).await {
            Ok(running) => {
                self.reporter.progress(Progress::Running);
                self.follow(running).await
            }
            Err(outcome) => self.refused(outcome).await,
        }
    }

    /// The output prefix of the attempt whose checkpoint this one goes on from. Waits for the object store: the task could
    /// not do without it either.
    async fn checkpointed(&self) -> String {
        let mut pause = PAUSE.0;
        loop {
            match checkpoint::newest(&*self.parts.results, &self.leased.previous_prefix).await {
                Ok(prefix) => return prefix,
                Err(e) => {
                    tracing::warn!(attempt = %self.leased.lease.id, "earlier checkpoints cannot be looked for now: {e}");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// Watches a started process until it is dead.
    async fn follow(&self, mut running: Running) -> End {
        let ended = tokio::select! {
            biased;
            ended = self.unless_stopped(running.ended()) => Some(ended),
            () = self.lingers() => None,
        };
        let exit = match ended {
            Some(Ok(exit)) => exit,
            Some(Err(End::Over)) => {
                running.stop().await;
                return End::Over;
            }
            Some(Err(end)) => return end,
            None => {
                self.stop_lingering(&mut running).await;
                // What it wrote says how it ended, and not that it was stopped.
                ExitRecord::now(Exit::Code(0))
            }
        };
        self.judge(&exit).await
    }

    /// Returns when the process has gone on for too long after it wrote how it ended: then it hangs in what comes after that. The
    /// SDK does so when connections of its controller never come back.
    async fn lingers(&self) {
        let linger = self.parts.linger;
        let look = (linger / 4).max(Duration::from_millis(250));
        let mut since = None;
        loop {
            tokio::time::sleep(look).await;
            match Results::are_there(&*self.parts.results, &self.leased.output_prefix).await {
                Ok(true) if since.get_or_insert_with(Instant::now).elapsed() >= linger => return,
                Ok(_) => {}
                Err(e) => tracing::debug!(attempt = %self.leased.lease.id, "its results cannot be looked for now: {e}"),
            }
        }
    }

    /// Stops a process that has written how it ended and goes on.
    async fn stop_lingering(&self, running: &mut Running) {
        let linger = self.parts.linger;
        tracing::warn!(attempt = %self.leased.lease.id, "its process goes on {linger:?} after it wrote how it ended, and is stopped");
        let (dir, text) = (
            self.dir(),
            format!(
                "This task wrote how it ended {linger:?} ago, but its process goes on (threads or children of it?): it is stopped now."
            ),
        );
        let note = move || {
            crate::logs::LogWriter::append(&dir.log())?.note(&text, clock::now());
            Ok(())
        };
        if let Err(e) = blocking(note).await {
            tracing::warn!(attempt = %self.leased.lease.id, "its log cannot be written: {e}");
        }
        running.stop().await;
    }

    /// Judges an attempt whose shim is gone.
    async fn judge_remains(&self) -> End {
        let dir = self.dir();
        let exit = blocking(move || exit_record(&dir)).await.unwrap_or_else(|e| {
            tracing::warn!(attempt = %self.leased.lease.id, "how this attempt ended cannot be read: {e}");
            ExitRecord::now(Exit::Unknown)
        });
        self.judge(&exit).await
    }

    /// How the attempt ended. Waits for the object store as long as it takes: without it nothing can be said.
    async fn judge(&self, exit: &ExitRecord) -> End {
        let prefix = &self.leased.output_prefix;
        let mut pause = PAUSE.0;
        loop {
            match self.unless_stopped(Results::read(&*self.parts.results, prefix)).await {
                Err(end) => return end,
                Ok(Ok(results)) => return End::Outcome(judge(results, exit, prefix)),
                Ok(Err(PlaneError::Unavailable(why))) => {
                    tracing::warn!(attempt = %self.leased.lease.id, "its results cannot be read now: {why}");
                }
                Ok(Err(e)) => {
                    let message = format!("What the task left below {prefix} cannot be read: {e}.");
                    let error = TaskError::new("ResultsUnreadable", message, ErrorKind::System, true);
                    return End::Outcome(AttemptOutcome::Failed(error, OutputRefs::default()));
                }
            }
            if let Err(end) = self.unless_stopped(tokio::time::sleep(pause)).await {
                return end;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    async fn run_native(&self, native: &dyn NativeTask) -> End {
        let (dir, lease, notes) = (self.dir(), self.leased.lease.clone(), self.notes.clone());
        let open = move || {
            dir.begin(&LaunchRecord::new(&lease.id, lease.token))?;
            let log = LogSink::append(&dir.log())?;
            notes.iter().for_each(|note| log.note(note));
            Ok(log)
        };
        let log = match blocking(open).await {
            Ok(log) => log,
            Err(e) => {
                let message = format!("Its log cannot be opened: {e}. Is the disk full?");
                let error = TaskError::new("LaunchFailed", message, ErrorKind::System, true);
                return End::Outcome(AttemptOutcome::Lost(error));
            }
        };
        self.reporter.progress(Progress::Running);
        let cancelled = CancellationToken::new();
        let mut work = std::pin::pin!(native.run(&self.leased, log.clone(), cancelled.clone()));
        let end = match self.unless_stopped(&mut work).await {
            Ok(outcome) => End::Outcome(outcome),
            Err(End::Over) => {
                cancelled.cancel();
                tokio::time::timeout(NATIVE_GRACE, work).await.ok();
                End::Over
            }
            // Run again after the next start, so nothing ends the log.
            Err(end) => return end,
        };
        log.flush();
        let dir = self.dir();
        blocking(move || dir.write_exit(&ExitRecord::now(Exit::Code(0)))).await.ok();
        end
    }

    /// What `work` gives, unless the attempt is over or the worker stops first.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, End> {
        tokio::select! {
            biased;
            () = self.over.cancelled() => Err(End::Over),
            () = self.stop.cancelled() => Err(End::Left),
            done = work => Ok(done),
        }
    }
}

fn malformed(why: &str) -> AttemptOutcome {
    let error = TaskError::new("UnsupportedTask", format!("The task's specification {why}."), ErrorKind::User, false);
    AttemptOutcome::Failed(error, OutputRefs::default())
}
