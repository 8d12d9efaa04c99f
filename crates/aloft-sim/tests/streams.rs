//! Streams that are overtaken while they read.

use std::{collections::BTreeSet, future::poll_fn, pin::pin, task::Poll, time::Duration};

use aloft_core::Time;
use aloft_sim::{
    client::{Client, Watched},
    ids::{Name, Place, Request, Reuse, RunLane},
    rules::{
        Check,
        answers::{Answer, Reply},
    },
    server::{Server, VirtualClock},
    step::{Kind, Policy, Work},
    watching::{Item, message},
};

/// How long a read of the store may take before the stream is asked for more.
const READ: Duration = Duration::from_millis(20);

/// Everything that a stream of a run's actions tells that was read `depth` times when an action was added and the run
/// aborted.
async fn overtaken(client: &Client, number: u8, depth: usize) -> Check<BTreeSet<String>> {
    let work = Work { task: 0, input: 0, policy: Policy::default() };
    let place = Place { project: "streams".to_owned(), domain: "development".to_owned() };
    let name = Name::Given(format!("run{number}"));
    let create = Request::Create { place, name, work: work.clone(), lane: RunLane::default(), reuse: Reuse::default() };
    let Answer::Done(Reply::Run(root)) = client.ask(&create).await? else { return Ok(BTreeSet::new()) };
    let run = root.id.run.clone();
    let watched = Watched::Actions(run.clone());
    let mut stream = client.watch(&watched).await?;
    let mut told = BTreeSet::new();
    let mut tell = |items: Vec<Item>| {
        told.extend(items.into_iter().filter_map(|item| match item {
            Item::Counted(shown, _) => Some(shown.id.name),
            _ => None,
        }));
    };
    let first = {
        let mut next = pin!(message(&mut stream, &watched));
        let mut first = None;
        for _ in 0..depth {
            let polled = poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await;
            if let Poll::Ready(items) = polled {
                first = Some(items);
                break;
            }
            tokio::time::sleep(READ).await;
        }
        let enqueue = Request::Enqueue {
            action: run.action("x1"),
            parent: "a0".to_owned(),
            kind: Kind::Task(work),
            group: String::new(),
            old: false,
            queue: String::new(),
        };
        client.ask(&enqueue).await?;
        let abort = Request::Abort { run, action: None, reason: "enough".to_owned(), via: 0 };
        client.ask(&abort).await?;
        match first {
            Some(first) => first,
            None => next.await,
        }
    };
    let mut next = first;
    while let Ok(items) = next {
        tell(items);
        next = message(&mut stream, &watched).await;
    }
    Ok(told)
}

#[tokio::test]
async fn a_stream_tells_of_what_began_while_it_read_that_all_has_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let clock = VirtualClock::new(Time::from_micros(1_700_000_000_000_000));
    let server = Server::start(&dir.path().join("sim.db"), clock).await.expect("a server");
    let client = Client::new(server.door().clone());
    client.create_project("streams").await.expect("a project");
    for depth in 0..6 {
        let told = overtaken(&client, depth, depth.into()).await.expect("a stream");
        assert_eq!(told, BTreeSet::from(["a0".to_owned(), "x1".to_owned()]), "overtaken at its read number {depth}");
    }
}
