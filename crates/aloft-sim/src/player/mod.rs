//! Plays a sequence: asks what its steps say, and after each one looks whether the server shows what must be.

mod audit;
mod elsewhere;
mod follow;
mod lanes;
mod reuse;
mod work;

use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    pin::pin,
    task::Poll,
    time::Duration,
};

use aloft_core::{ROOT_ACTION, Time};
use futures::future::join_all;

use crate::{
    book::Book,
    client::{Client, Watched},
    draw::Hands,
    elsewhere::ABORT_HERE,
    fault::Fault,
    host::Host,
    ids::{ActionId, Lease, Name, Origin, Request, Reuse, RunId},
    model::{Asked, Beliefs, Model, Run},
    rules::{Check, answers::Answer, durable, views},
    scene::Scene,
    seen::{Details, Shown},
    signal::{Says, Value},
    step::{self, Command, Forgery, Naming, Step, Watch},
    tally::Tally,
    watching::Watching,
};

/// How much later a server is killed for every step further into a request.
const DEPTH: Duration = Duration::from_micros(400);

/// One sequence being played on a server.
pub struct Player<'h> {
    host: &'h mut Host,
    client: Client,
    book: Book,
    scene: Scene,
    beliefs: Beliefs,
    memory: Memory,
    /// What was asked, to ask it again.
    asked: Vec<Request>,
    /// Every lease that was ever given, oldest first.
    leases: Vec<Lease>,
    prefixes: HashSet<String>,
    /// The projects that were made.
    furnished: HashSet<String>,
    watchings: Vec<Watching>,
    hearing: work::Hearing,
    tally: Tally,
    fault: Fault,
}

/// What was last seen of each action, and all of what has ended.
#[derive(Default)]
struct Memory {
    shown: HashMap<ActionId, Shown>,
    details: HashMap<ActionId, Details>,
}

impl Memory {
    fn shown(&mut self, shown: &Shown) -> Check {
        if let Some(before) = self.shown.insert(shown.id.clone(), shown.clone()) {
            views::rule_5_terminal_is_final_in_every_view(&before, shown)?;
            views::rule_5_attempts_only_increase(&before, shown)?;
            views::rule_5_phases_only_advance(&before, shown)?;
        }
        Ok(())
    }

    fn details(&mut self, details: &Details) -> Check {
        self.shown(&details.shown)?;
        views::rule_9_a_failure_carries_its_error(details)?;
        if let Some(before) = self.details.insert(details.shown.id.clone(), details.clone()) {
            views::rule_5_attempts_are_kept(&before, details)?;
            views::rule_5_the_record_of_an_end_is_final(&before, details)?;
        }
        Ok(())
    }
}

/// Plays `steps` on `host` as sequence `number`, with `fault` in between, and checks everything.
///
/// # Errors
/// The first rule that did not hold.
pub async fn play(host: &mut Host, number: u64, steps: &[Step], fault: Fault) -> Check<Tally> {
    let mut player = Player::new(host, number, fault).await?;
    for step in steps {
        player.step(step).await?;
    }
    player.finish().await
}

impl<'h> Player<'h> {
    async fn new(host: &'h mut Host, number: u64, fault: Fault) -> Check<Self> {
        let scene = Scene::new(number);
        let client = Client::new(host.door());
        // Where what does not exist is looked for.
        let first = scene.place(0).project;
        client.create_project(&first).await?;
        let book = views::rule_1_every_view_can_be_read(Book::open(&host.database()))?;
        let beliefs = Beliefs::new(Model::new(host.hands(), scene.places()));
        let mut player = Self {
            host,
            client,
            book,
            scene,
            beliefs,
            memory: Memory::default(),
            asked: Vec::new(),
            leases: Vec::new(),
            prefixes: HashSet::new(),
            furnished: HashSet::from([first]),
            watchings: Vec::new(),
            hearing: work::Hearing::default(),
            tally: Tally::default(),
            fault,
        };
        player.fault.beside(&player.host.database());
        player.hear().await;
        Ok(player)
    }

    fn model(&self) -> &Model {
        self.beliefs.model()
    }

    fn ours(&self) -> bool {
        self.host.hands() == Hands::Ours
    }

    async fn step(&mut self, step: &Step) -> Check {
        match step {
            Step::Do(command) => match self.request(command) {
                Some(request) => self.ask(request).await,
                None => Ok(()),
            },
            Step::Race(commands) => {
                let requests: Vec<_> = commands.iter().filter_map(|c| self.request(c)).collect();
                self.race(requests).await
            }
            Step::Again(back) => {
                let Some(last) = self.asked.len().checked_sub(1) else { return Ok(()) };
                let request = self.asked[last - usize::from(*back) % (last + 1)].clone();
                self.ask(request).await
            }
            Step::Cut(command) => match self.request(command) {
                Some(request) => self.cut(request).await,
                None => Ok(()),
            },
            Step::Restart => {
                self.restart().await?;
                self.found_again().await
            }
            Step::Wait(millis) => {
                self.host.wait(*millis).await;
                Ok(())
            }
            Step::Settle => self.settle().await.map(drop),
            Step::CheckLimits => self.check_limits().await,
            Step::Hold => self.hold().await,
            Step::Watch(watch) => self.watch(watch).await,
            Step::Reclaim(worker) => self.reclaim(&work::worker(*worker)).await,
            Step::LookUp { reachable } => self.look_up(*reachable).await,
            Step::Vanish(back) => {
                self.vanish(*back);
                Ok(())
            }
        }
    }

    /// What a command asks; `None` if there is nothing that it could be about.
    fn request(&self, command: &Command) -> Option<Request> {
        let (scene, model) = (&self.scene, self.model());
        Some(match command {
            Command::Create { place, name, work, lane, reuse } => Request::Create {
                place: scene.place(*place),
                name: match name {
                    Naming::Named(n) => Name::Given(scene.run_name(*n)),
                    other => self.unnamed(other),
                },
                work: work.clone(),
                lane: self.lane(lane),
                reuse: self.reuse(reuse),
            },
            Command::Enqueue { run, action, parent, kind, old, queue } => {
                let run = scene.run(*run, model);
                Request::Enqueue {
                    parent: scene.action(*parent, &run, model),
                    action: run.action(&scene.action_name(*action)),
                    kind: kind.clone(),
                    group: if *old { String::new() } else { "group".to_owned() },
                    old: *old,
                    queue: queue.map(|n| scene.queue(n)).unwrap_or_default(),
                }
            }
            Command::Abort { run, action, via } => {
                let run = scene.run(*run, model);
                let here = *via == 2 && action.is_none() && model.run(&run).is_some_and(Run::is_elsewhere);
                Request::Abort {
                    action: action.map(|n| scene.action(n, &run, model)),
                    run,
                    reason: format!("abort number {}", self.asked.len()),
                    via: if here { ABORT_HERE } else { *via },
                }
            }
            Command::Lease { .. } if !self.ours() => return None,
            Command::Lease { worker, max } => Request::Lease { worker: work::worker(*worker), max: usize::from(*max) },
            Command::Report { lease, progress } => {
                Request::Report { lease: self.lease(*lease)?, progress: progress.clone() }
            }
            Command::Signal { run, action, says, via } => {
                let run = scene.run(*run, model);
                let action = run.action(&scene.condition(*action, &run, model));
                let value = match says {
                    Says::Exactly(value) => *value,
                    Says::Fitting(n) => Value::fitting(model.awaits(&action), *n),
                };
                Request::Signal { action, value, via: *via }
            }
            Command::Queue { queue, change } => Request::Queue { name: scene.queue(*queue), change: *change },
            Command::Track { place, name, work, start, lane } => Request::Track {
                place: scene.place(*place),
                name: match name {
                    Naming::Named(n) => Name::Given(scene.name_elsewhere(*n)),
                    other => self.unnamed(other),
                },
                work: work.clone(),
                start: *start,
                lane: self.lane(lane),
            },
            Command::Tell { run, action, parent, kind, said } => self.tell(*run, (*action, *parent), kind, said),
            // More than one limit at once, and other requests could come between them.
            Command::TimeOut => model.has_one_limit_due(self.host.now()).then_some(Request::TimeOut)?,
            Command::Forge { lease, how } => {
                let mut lease = self.lease(*lease)?;
                match how {
                    Forgery::Token => lease.token = lease.token.wrapping_add(1),
                    Forgery::Attempt => lease.attempt += 1,
                }
                Request::Report { lease, progress: crate::step::Progress::Running }
            }
        })
    }

    fn reuse(&self, reuse: &step::Reuse) -> Reuse {
        let (scene, model) = (&self.scene, self.model());
        let names = |forced: &Vec<u8>| forced.iter().map(|n| scene.action_name(*n)).collect();
        // What was achieved elsewhere is not taken over by these runs.
        let is_here = |run: &RunId| !model.run(run).is_some_and(Run::is_elsewhere);
        let from = reuse.from.as_ref().filter(|o| is_here(&scene.run(o.run, model)));
        Reuse {
            overwrite: reuse.overwrite,
            own_domain: reuse.own_domain,
            from: from.map(|o| Origin { run: scene.run(o.run, model), recover: o.recover.as_ref().map(names) }),
        }
    }

    fn lease(&self, back: u8) -> Option<Lease> {
        let last = self.leases.len().checked_sub(1)?;
        Some(self.leases[last - usize::from(back) % (last + 1)].clone())
    }

    async fn ask(&mut self, request: Request) -> Check {
        let at = self.host.now();
        self.furnish(&request).await?;
        let really = self.fault.request(&request);
        let answer = match self.fault.swallows(&request) {
            Some(answer) => answer,
            None => self.send(&really).await?,
        };
        let answer = self.fault.answer(&request, answer);
        self.tally.answered(&request, &answer);
        if matches!(answer, Answer::Done(_)) && self.model().passes_its_queue(&request, at) {
            self.tally.count("recovered past a queue");
        }
        self.keep(&answer)?;
        self.beliefs.answered(Asked { request: &request, at, alone: true }, &answer)?;
        self.look_after(&request, &answer).await?;
        self.fault.afterwards(&request, &answer);
        self.remember(request);
        Ok(())
    }

    /// A lease and a time limit ask for something else each time, so only the rest can be repeated.
    fn remember(&mut self, request: Request) {
        if !matches!(request, Request::Lease { .. } | Request::TimeOut) {
            self.asked.push(request);
        }
    }

    /// Makes the project of a run that is about to be created, if it is one of the sequence's.
    async fn furnish(&mut self, request: &Request) -> Check {
        let (Request::Create { place, .. } | Request::Track { place, .. }) = request else { return Ok(()) };
        if self.scene.projects().contains(&place.project) && self.furnished.insert(place.project.clone()) {
            self.client.create_project(&place.project).await?;
        }
        Ok(())
    }

    async fn race(&mut self, requests: Vec<Request>) -> Check {
        for request in &requests {
            self.furnish(request).await?;
        }
        let at = self.host.now();
        let answers = join_all(requests.iter().map(|request| self.send(request))).await;
        let answers = answers.into_iter().collect::<Check<Vec<_>>>()?;
        if requests.len() > 1 {
            self.tally.count("raced");
        }
        requests.iter().zip(&answers).for_each(|(request, answer)| self.tally.answered(request, answer));
        let asked: Vec<_> = requests
            .iter()
            .zip(answers)
            .map(|(request, answer)| (Asked { request, at, alone: false }, answer))
            .collect();
        self.beliefs.raced(&asked)?;
        let answered: Vec<Answer> = asked.into_iter().map(|(_, answer)| answer).collect();
        for (request, answer) in requests.iter().zip(&answered) {
            self.keep(answer)?;
            self.look_after(request, answer).await?;
        }
        requests.into_iter().for_each(|request| self.remember(request));
        Ok(())
    }

    /// Sends a request and lets the server die under it.
    async fn send_and_kill(&mut self, request: &Request) -> Check<Answer> {
        let depth = self.asked.len() % 7;
        if !self.ours() {
            let (client, asked) = (self.client.clone(), request.clone());
            let sent = tokio::spawn(async move { client.ask(&asked).await });
            tokio::time::sleep(DEPTH * u32::try_from(depth).unwrap_or(0)).await;
            self.host.kill();
            return sent.await.unwrap_or(Ok(Answer::Lost));
        }
        let mut sent = pin!(self.send(request));
        let mut polls = 0;
        poll_fn(|context| match sent.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer),
            Poll::Pending if polls == depth => Poll::Ready(Ok(Answer::Lost)),
            Poll::Pending => {
                polls += 1;
                Poll::Pending
            }
        })
        .await
    }

    /// The server dies under a request.
    async fn cut(&mut self, request: Request) -> Check {
        self.furnish(&request).await?;
        let at = self.host.now();
        let answer = self.send_and_kill(&request).await?;
        self.tally.count(if answer == Answer::Lost { "cut: lost" } else { "cut: answered" });
        self.restart().await?;
        let (Request::Create { name: asked, .. } | Request::Track { name: asked, .. }) = &request else {
            return self.after_cut(request, answer, at).await;
        };
        let unnamed = matches!(asked, Name::ForRequest(_));
        if unnamed && answer == Answer::Lost {
            // Only asking again tells its name, which is what the SDK does.
            self.client = Client::new(self.host.door());
            self.ask(request).await?;
            return self.found_again().await;
        }
        self.after_cut(request, answer, at).await
    }

    async fn after_cut(&mut self, request: Request, answer: Answer, at: Time) -> Check {
        self.beliefs.answered(Asked { request: &request, at, alone: true }, &answer)?;
        self.keep(&answer)?;
        self.found_again().await?;
        self.remember(request);
        Ok(())
    }

    async fn restart(&mut self) -> Check {
        self.tally.count("restarted");
        let between = self.fault.between();
        self.host.restart(between).await
    }

    /// After a restart: what was acknowledged is there, and what was not is either there or not.
    async fn found_again(&mut self) -> Check {
        self.client = Client::new(self.host.door());
        self.book = views::rule_1_every_view_can_be_read(Book::open(&self.host.database()))?;
        for place in self.busy_places() {
            let roots = self.client.runs(&place).await?;
            let listed: Vec<&RunId> = roots.iter().map(|shown| &shown.id.run).collect();
            let survived = self.beliefs.observed(|model| {
                views::rule_1_lists_are_complete("after the restart, ListRuns", &model.runs_of(&place), &listed)
            });
            durable::rule_3_acknowledged_survives_restart(survived)?;
        }
        for run in self.runs() {
            let rows = self.fault.rows(self.client.actions(&run).await?);
            let survived = self.list_holds("after the restart, ListActions", &run, &rows);
            durable::rule_3_acknowledged_survives_restart(survived)?;
        }
        self.hear().await;
        for worker in work::workers() {
            self.reclaim(&worker).await?;
        }
        Ok(())
    }

    fn runs(&self) -> Vec<RunId> {
        self.model().runs().into_iter().map(|(id, _)| id.clone()).collect()
    }

    async fn send(&self, request: &Request) -> Check<Answer> {
        self.write_outputs(request);
        match request {
            Request::Lease { worker, max } => self.take(worker, *max).await,
            Request::Report { lease, progress } => self.report(lease, progress).await,
            Request::TimeOut => self.time_out().await,
            Request::Create { .. }
            | Request::Enqueue { .. }
            | Request::Abort { .. }
            | Request::Signal { .. }
            | Request::Track { .. }
            | Request::Tell { .. }
            | Request::Queue { .. } => self.client.ask(request).await,
        }
    }

    /// Looks at what a request was about, now that it was answered.
    async fn look_after(&mut self, request: &Request, answer: &Answer) -> Check {
        match request {
            Request::Create { .. } | Request::Track { .. } => {
                if let Answer::Done(crate::rules::answers::Reply::Run(shown)) = answer {
                    self.look(&shown.id).await?;
                }
            }
            Request::Enqueue { action, .. } | Request::Signal { action, .. } => self.look(action).await?,
            Request::Tell { action, .. } => self.look_below(action).await?,
            Request::Report { lease, .. } => self.look(&lease.action).await?,
            Request::Queue { name, .. } => self.look_at_queue(name).await?,
            Request::Lease { .. } | Request::TimeOut => {}
            Request::Abort { run, action, .. } => {
                let target = run.action(action.as_deref().unwrap_or(ROOT_ACTION));
                self.look(&target).await?;
                if matches!(answer, Answer::Done(_)) {
                    let below = self.below(&target);
                    for id in below {
                        views::rule_5_abort_shown_on_descendants_at_once(self.look(&id).await)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn below(&self, target: &ActionId) -> Vec<ActionId> {
        let Some(run) = self.model().run(&target.run) else { return Vec::new() };
        run.names().into_iter().filter(|n| run.below(n, &target.name)).map(|n| target.run.action(n)).collect()
    }

    /// Looks at one action, if there is one.
    async fn look(&mut self, id: &ActionId) -> Check {
        if self.model().run(&id.run).is_none_or(|run| !run.actions.contains_key(&id.name)) {
            return Ok(());
        }
        let details = self.fault.details(self.client.details(id).await?);
        self.memory.details(&details)?;
        self.beliefs.observe(&details)
    }

    async fn watch(&mut self, watch: &Watch) -> Check {
        let (scene, model) = (&self.scene, self.model());
        let action = |run: &u8, action: &u8| {
            let run = scene.run(*run, model);
            run.action(&scene.action(*action, &run, model))
        };
        let watched = match watch {
            Watch::Children { run, parent, old } => {
                let parent = action(run, parent);
                if *old { Watched::ChildrenOld(parent) } else { Watched::Children(parent) }
            }
            Watch::Actions { run } => Watched::Actions(scene.run(*run, model)),
            Watch::Action { run, action: of } => Watched::Action(action(run, of)),
            Watch::Run { run } => Watched::Run(scene.run(*run, model)),
            Watch::Runs { place } => Watched::Runs(scene.place(*place)),
        };
        self.follow(watched).await
    }
}
