//! Which of the waiting actions are handed out next: limits of runs, queues and projects, priority and fairness.
//!
//! One dispatcher asks for a plan and leases what it grants before it asks again, so what is in flight can only have shrunk
//! in between, except that a parent counts again when its last child has ended: limits may be passed by as many.

use std::collections::BTreeSet;

use crate::{ActionName, Asks, ErrorKind, Fairness, QueueLimits, QueueSpec, RunKey, TaskError, Time};

/// What is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Runs whose root has started and not ended.
    pub runs: u64,
    /// Actions that count ([`crate::ActionState::counts`]).
    pub actions: u64,
    /// What these ask for together.
    pub asks: Asks,
}

/// A queue, or a project or a domain of one: what it allows and what is in flight in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    /// What it is called in a sentence, such as `queue bulk`.
    pub name: String,
    /// What it allows.
    pub spec: QueueSpec,
    /// What is in flight.
    pub load: Load,
}

/// A run that has work waiting.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitingRun {
    /// The run.
    pub run: RunKey,
    /// Most of its actions that run at a time.
    pub max_actions: Option<u32>,
    /// Its actions that count.
    pub in_flight: u64,
    /// Whether its root has started.
    pub started: bool,
    /// Its project and domain where they have limits: indices of [`Offer::places`].
    pub places: Vec<usize>,
}

/// A waiting action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub action: ActionName,
    /// Since when it may be handed out.
    pub ready_at: Time,
    /// What it asks for.
    pub asks: Asks,
    /// Whether it counts against limits once it is handed out: a parent that is tried again does not while what it started
    /// has not ended.
    pub counts: bool,
}

/// What one run has waiting in one queue.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Index of [`Offer::runs`].
    pub run: usize,
    /// Index of [`Offer::queues`].
    pub queue: usize,
    /// Longest ready first, deeper first among equals.
    pub candidates: Vec<Candidate>,
}

/// What a plan is made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    /// Runs with work waiting.
    pub runs: Vec<WaitingRun>,
    /// Queues that have work waiting.
    pub queues: Vec<Lane>,
    /// Projects and domains with limits.
    pub places: Vec<Lane>,
    /// What waits.
    pub groups: Vec<Group>,
}

/// An action to hand out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its run.
    pub run: RunKey,
    /// Its name.
    pub action: ActionName,
}

/// An action that a limit holds back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its run.
    pub run: RunKey,
    /// The action.
    pub candidate: Candidate,
    /// Which limit.
    pub reason: String,
}

/// An action that can never be handed out.
#[derive(Clone, Debug, PartialEq)]
pub struct Never {
    /// Its run.
    pub run: RunKey,
    /// Its name.
    pub action: ActionName,
    /// Why: code `UNSCHEDULABLE`.
    pub error: TaskError,
}

/// What to do with what waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// To hand out, in this order.
    pub grants: Vec<Grant>,
    /// Held back by a limit. What merely found no free slot is not among them.
    pub held: Vec<Held>,
    /// To fail.
    pub never: Vec<Never>,
}

/// Plans who gets `slots` places of a data plane.
///
/// Queues of a higher priority go first; those of one priority take turns. Within a queue the longest waiting goes first,
/// or runs take turns, as the queue declares. A queue whose first candidate does not fit waits for it, so that a large
/// one is not passed by for ever.
pub fn plan(mut offer: Offer, slots: usize) -> Plan {
    let mut plan = Plan::default();
    refuse_impossible(&mut offer, &mut plan);
    grant_parents(&mut offer, slots, &mut plan);
    let mut next = vec![0; offer.groups.len()];
    let mut stuck: Vec<Option<String>> = vec![None; offer.groups.len()];
    let priorities: BTreeSet<_> = offer.queues.iter().map(|q| q.spec.priority).collect();
    for priority in priorities.into_iter().rev() {
        let mut turn: Vec<usize> =
            (0..offer.queues.len()).filter(|q| offer.queues[*q].spec.priority == priority).collect();
        while !turn.is_empty() && plan.grants.len() < slots {
            turn.retain(|queue| {
                plan.grants.len() < slots && grant_one(&mut offer, *queue, &mut next, &mut stuck, &mut plan)
            });
        }
    }
    for (g, group) in offer.groups.iter().enumerate() {
        let reason = stuck[g].clone().or_else(|| first_obstacle(&offer, group, next[g]));
        let Some(reason) = reason else { continue };
        plan.held.extend(group.candidates[next[g]..].iter().map(|c| Held {
            run: offer.runs[group.run].run.clone(),
            candidate: c.clone(),
            reason: reason.clone(),
        }));
    }
    plan
}

/// Takes out what asks for more than its queue ever allows.
fn refuse_impossible(offer: &mut Offer, plan: &mut Plan) {
    for group in &mut offer.groups {
        let queue = &offer.queues[group.queue];
        let run = &offer.runs[group.run].run;
        group.candidates.retain(|c| {
            let Some(excess) = excess(&queue.spec.limits, Asks::default(), c.asks) else { return true };
            let message = format!(
                "{} asks for {} of {}, and {} allows {} in all: ask for less, or raise the queue's limit",
                c.action, excess.asked, excess.resource, queue.name, excess.cap
            );
            let error = TaskError::new("UNSCHEDULABLE", message, ErrorKind::User, false);
            plan.never.push(Never { run: run.clone(), action: c.action.clone(), error });
            false
        });
    }
}

/// Grants what counts against no limit, and takes it out: it waits for nothing but a slot, whatever stands before it. What
/// would start a run stays in line, for that is limited too.
fn grant_parents(offer: &mut Offer, slots: usize, plan: &mut Plan) {
    let mut parents = Vec::new();
    for group in &mut offer.groups {
        let priority = offer.queues[group.queue].spec.priority;
        let run = &offer.runs[group.run];
        group.candidates.retain(|c| {
            let in_line = c.counts || (c.action.is_root() && !run.started);
            if !in_line {
                let grant = Grant { run: run.run.clone(), action: c.action.clone() };
                parents.push((std::cmp::Reverse(priority), c.ready_at, grant));
            }
            in_line
        });
    }
    parents.sort_by_key(|(priority, ready_at, _)| (*priority, *ready_at));
    plan.grants.extend(parents.into_iter().map(|(.., grant)| grant).take(slots));
}

/// Grants one candidate of `queue`; `false` if nothing of it can be granted any more.
fn grant_one(
    offer: &mut Offer,
    queue: usize,
    next: &mut [usize],
    stuck: &mut [Option<String>],
    plan: &mut Plan,
) -> bool {
    loop {
        let waiting = offer
            .groups
            .iter()
            .enumerate()
            .filter(|(g, group)| group.queue == queue && stuck[*g].is_none() && next[*g] < group.candidates.len());
        let first = match offer.queues[queue].spec.fairness {
            Fairness::FirstInFirstOut => waiting.min_by_key(|(g, group)| group.candidates[next[*g]].ready_at),
            Fairness::RoundRobin => {
                waiting.min_by_key(|(g, group)| (offer.runs[group.run].in_flight, group.candidates[next[*g]].ready_at))
            }
        };
        let Some((g, _)) = first else { return false };
        let group = &offer.groups[g];
        if let Some(reason) = lane_obstacle(offer, group, next[g]) {
            let behind = offer.groups.iter().enumerate().filter(|(_, group)| group.queue == queue);
            behind.for_each(|(g, _)| {
                stuck[g].get_or_insert_with(|| reason.clone());
            });
            return false;
        }
        if let Some(reason) = run_obstacle(offer, group, next[g]) {
            stuck[g] = Some(reason);
            continue;
        }
        let candidate = group.candidates[next[g]].clone();
        next[g] += 1;
        let run = group.run;
        plan.grants.push(Grant { run: offer.runs[run].run.clone(), action: candidate.action.clone() });
        take(offer, run, queue, &candidate);
        return true;
    }
}

/// Counts a granted candidate as in flight.
fn take(offer: &mut Offer, run: usize, queue: usize, candidate: &Candidate) {
    let waiting = &mut offer.runs[run];
    let starts = candidate.action.is_root() && !waiting.started;
    waiting.in_flight += 1;
    waiting.started |= starts;
    let places = waiting.places.clone();
    let lanes = std::iter::once(&mut offer.queues[queue])
        .chain(offer.places.iter_mut().enumerate().filter(|(p, _)| places.contains(p)).map(|(_, lane)| lane));
    for lane in lanes {
        lane.load.actions += 1;
        lane.load.runs += u64::from(starts);
        lane.load.asks = plus(lane.load.asks, candidate.asks);
    }
}

fn first_obstacle(offer: &Offer, group: &Group, at: usize) -> Option<String> {
    group.candidates.get(at)?;
    lane_obstacle(offer, group, at).or_else(|| run_obstacle(offer, group, at))
}

/// Why nothing of the group's queue can be handed out before this candidate.
fn lane_obstacle(offer: &Offer, group: &Group, at: usize) -> Option<String> {
    full_of_actions(&offer.queues[group.queue], &group.candidates[at])
}

/// Why nothing of the group's run can be handed out before this candidate, though others of the queue can.
fn run_obstacle(offer: &Offer, group: &Group, at: usize) -> Option<String> {
    let (run, candidate) = (&offer.runs[group.run], &group.candidates[at]);
    if let Some(max) = run.max_actions.filter(|max| run.in_flight >= u64::from(*max)) {
        return Some(format!("the run has {max} actions running, as many as its max_action_concurrency allows"));
    }
    let starts = candidate.action.is_root() && !run.started;
    let places = || run.places.iter().map(|place| &offer.places[*place]);
    let full_of_runs = std::iter::once(&offer.queues[group.queue]).chain(places()).find_map(|lane| {
        let limit = lane.spec.limits.run_concurrency.filter(|limit| starts && lane.load.runs >= u64::from(*limit))?;
        Some(format!("{} has {limit} runs running, as many as it allows", lane.name))
    });
    full_of_runs.or_else(|| places().find_map(|lane| full_of_actions(lane, candidate)))
}

fn full_of_actions(lane: &Lane, candidate: &Candidate) -> Option<String> {
    let limits = &lane.spec.limits;
    if let Some(limit) = limits.action_concurrency.filter(|limit| lane.load.actions >= u64::from(*limit)) {
        return Some(format!("{} has {limit} actions running, as many as it allows", lane.name));
    }
    let excess = excess(limits, lane.load.asks, candidate.asks)?;
    Some(format!("{} has not enough {} left of its {} for {}", lane.name, excess.resource, excess.cap, excess.asked))
}

struct Excess {
    resource: &'static str,
    asked: String,
    cap: String,
}

/// The first resource of which `asks` and `used` together are more than the limits allow.
fn excess(limits: &QueueLimits, used: Asks, asks: Asks) -> Option<Excess> {
    let caps = &limits.resources;
    let over =
        |cap: Option<u64>, used: u64, asked: u64| cap.filter(|cap| asked > 0 && used.saturating_add(asked) > *cap);
    if let Some(cap) = over(caps.memory, used.memory, asks.memory) {
        return Some(Excess { resource: "memory", asked: bytes(asks.memory), cap: bytes(cap) });
    }
    if let Some(cap) = over(caps.cpu, used.cpu, asks.cpu) {
        return Some(Excess { resource: "cpu", asked: cores(asks.cpu), cap: cores(cap) });
    }
    over(caps.gpu, used.gpu, asks.gpu).map(|cap| Excess {
        resource: "gpu",
        asked: asks.gpu.to_string(),
        cap: cap.to_string(),
    })
}

fn plus(a: Asks, b: Asks) -> Asks {
    Asks {
        memory: a.memory.saturating_add(b.memory),
        cpu: a.cpu.saturating_add(b.cpu),
        gpu: a.gpu.saturating_add(b.gpu),
    }
}

fn bytes(n: u64) -> String {
    const MI: u64 = 1 << 20;
    if n.is_multiple_of(MI) { format!("{}Mi", n / MI) } else { format!("{n} bytes") }
}

fn cores(millis: u64) -> String {
    if millis.is_multiple_of(1000) { (millis / 1000).to_string() } else { format!("{millis}m") }
}

#[cfg(test)]
mod tests;
