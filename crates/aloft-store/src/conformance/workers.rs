//! Workers and their sessions.

use super::*;
use crate::{AboutWorker, WorkerRecord};

fn worker(name: &str, session: u64) -> WorkerRecord {
    let about = AboutWorker { process: 7, version: "1".into(), host: "h".into(), ..AboutWorker::default() };
    WorkerRecord { id: WorkerId(name.into()), session, beat: 0, expired: false, about }
}

pub(super) async fn workers_are_known_by_their_session(store: Handle) {
    let (a, b) = (WorkerId("a".into()), WorkerId("b".into()));
    assert_eq!(store.worker(&a).await.unwrap(), None);
    assert!(!store.put_worker(worker("a", 1), 1).await.unwrap(), "there is none to replace");
    assert!(store.put_worker(worker("a", 1), 0).await.unwrap());
    assert!(!store.put_worker(worker("a", 2), 0).await.unwrap(), "there is one");
    assert!(store.put_worker(worker("b", u64::MAX), 0).await.unwrap());
    let first = store.worker(&a).await.unwrap().expect("stored");
    assert_eq!(first, WorkerRecord { beat: 1, ..worker("a", 1) });
    let found = store.workers().await.unwrap();
    let found: Vec<_> = found.iter().map(|w| (w.id.0.as_str(), w.session)).collect();
    assert_eq!(found, [("a", 1), ("b", u64::MAX)]);

    // Signs of life count for the session that is, and change the number that others look at.
    let about = AboutWorker { draining: true, room: 3, heard_at: Time::from_micros(9), ..first.about.clone() };
    assert!(store.beat_worker(&a, 1, about.clone()).await.unwrap());
    assert!(!store.beat_worker(&a, 2, about.clone()).await.unwrap(), "not its session");
    assert!(!store.beat_worker(&WorkerId("c".into()), 1, about.clone()).await.unwrap(), "not known");
    assert!(store.beat_worker(&b, u64::MAX, about.clone()).await.unwrap(), "all numbers are good");
    let second = store.worker(&a).await.unwrap().expect("stored");
    assert_eq!(second, WorkerRecord { beat: 2, about: about.clone(), ..first });

    // Of two that give it up or let it begin anew, one is the first; and a sign of life goes before both.
    let expired = WorkerRecord { expired: true, ..second.clone() };
    assert!(!store.put_worker(expired.clone(), 1).await.unwrap());
    assert!(store.put_worker(expired.clone(), 2).await.unwrap());
    assert!(!store.put_worker(WorkerRecord { session: 5, ..second }, 2).await.unwrap());
    assert!(!store.beat_worker(&a, 1, about.clone()).await.unwrap(), "it is given up");
    assert!(store.worker(&a).await.unwrap().expect("stored").expired);
    assert!(store.put_worker(worker("a", 5), 3).await.unwrap());
    assert!(store.beat_worker(&a, 5, about).await.unwrap());

    assert!(!store.drop_worker(&a, 4).await.unwrap(), "it was heard of since");
    assert!(store.drop_worker(&a, 5).await.unwrap());
    assert_eq!(store.worker(&a).await.unwrap(), None);

    // Who holds something is found whether or not it is known.
    assert!(store.holders().await.unwrap().is_empty());
    let run = key("r1");
    ok(&store, create(&run, "d")).await;
    for (name, holder, token) in [("x1", "b", 1), ("x2", "dev", 2), ("x3", "b", 3)] {
        ok(&store, enqueue(&run, name, "a0")).await;
        ok(&store, lease(&run, name, holder, token)).await;
    }
    assert_eq!(store.holders().await.unwrap(), [b.clone(), WorkerId("dev".into())]);
    assert_eq!((store.held_count(&b).await.unwrap(), store.held_count(&a).await.unwrap()), (2, 0));
    ok(&store, report(&run, "x2", 2, done())).await;
    assert_eq!(store.holders().await.unwrap(), [b]);
}
