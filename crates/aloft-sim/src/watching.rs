//! Streams, read in the background while the sequence goes on.

use std::{collections::BTreeMap, sync::Arc};

use aloft_flyteidl2::flyteidl2::{
    actions::{WatchForUpdatesResponse, watch_for_updates_response},
    workflow::{
        WatchActionDetailsResponse, WatchActionsResponse, WatchResponse, WatchRunDetailsResponse, WatchRunsResponse,
        watch_response,
    },
};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle};

use crate::{
    client::{Client, Watched},
    door::{Stream, StreamEnd},
    rules::Check,
    seen::{Details, Shown, Update},
};

/// One thing that a stream said.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// An action or a run's root.
    Shown(Shown),
    /// An action with how many of its children are in which phase.
    Counted(Shown, BTreeMap<i32, i32>),
    /// All of an action.
    Details(Details),
    /// A child.
    Update(Update),
    /// The snapshot is complete, or the stream is alive.
    Sentinel,
    /// What cannot be read.
    Unreadable(String),
}

/// What a stream has said so far, and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    /// Everything it said, in order.
    pub items: Vec<Item>,
    /// How it ended.
    pub end: Option<StreamEnd>,
}

/// A stream that is read.
pub struct Watching {
    /// What it watches.
    pub watched: Watched,
    heard: Arc<Mutex<Heard>>,
    more: Arc<Notify>,
    reader: JoinHandle<()>,
}

impl Watching {
    /// Opens a stream and reads it until it ends or this is dropped.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub async fn open(client: &Client, watched: Watched) -> Check<Self> {
        let mut stream = client.watch(&watched).await?;
        let (heard, more) = (Arc::new(Mutex::new(Heard::default())), Arc::new(Notify::new()));
        let (sink, wake, what) = (heard.clone(), more.clone(), watched.clone());
        let reader = tokio::spawn(async move {
            loop {
                let next = message(&mut stream, &what).await;
                let over = next.is_err();
                {
                    let mut heard = sink.lock();
                    match next {
                        Ok(items) => heard.items.extend(items),
                        Err(end) => heard.end = Some(end),
                    }
                }
                wake.notify_one();
                if over {
                    return;
                }
            }
        });
        Ok(Self { watched, heard, more, reader })
    }

    /// What it has said so far.
    pub fn heard(&self) -> Heard {
        self.heard.lock().clone()
    }

    /// Waits until it says more or ends.
    pub async fn more(&self) {
        self.more.notified().await;
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// The items of the next message.
pub async fn message(stream: &mut Stream, watched: &Watched) -> Result<Vec<Item>, StreamEnd> {
    let readable = |read: Result<Item, String>| read.unwrap_or_else(Item::Unreadable);
    Ok(match watched {
        Watched::Children(_) => match stream.next::<WatchForUpdatesResponse>().await?.message {
            Some(watch_for_updates_response::Message::ActionUpdate(update)) => {
                vec![readable(Update::read(&update).map(Item::Update))]
            }
            Some(watch_for_updates_response::Message::ControlMessage(_)) => vec![Item::Sentinel],
            None => vec![Item::Unreadable("a message without content".to_owned())],
        },
        Watched::ChildrenOld(_) => match stream.next::<WatchResponse>().await?.message {
            Some(watch_response::Message::ActionUpdate(update)) => {
                vec![readable(Update::read(&update).map(Item::Update))]
            }
            Some(watch_response::Message::ControlMessage(_)) => vec![Item::Sentinel],
            None => vec![Item::Unreadable("a message without content".to_owned())],
        },
        Watched::Actions(_) => {
            let message = stream.next::<WatchActionsResponse>().await?;
            let counted = message.enriched_actions.iter().map(|enriched| {
                let counts = enriched.children_phase_counts.iter().map(|(k, v)| (*k, *v)).collect();
                readable(Shown::read(&enriched.action).map(|shown| Item::Counted(shown, counts)))
            });
            counted.collect()
        }
        Watched::Action(_) => {
            let message = stream.next::<WatchActionDetailsResponse>().await?;
            vec![readable(Details::read(&message.details).map(Item::Details))]
        }
        Watched::Run(_) => {
            let message = stream.next::<WatchRunDetailsResponse>().await?;
            vec![readable(Details::read(&message.details.action).map(Item::Details))]
        }
        Watched::Runs(_) => {
            let message = stream.next::<WatchRunsResponse>().await?;
            message.runs.iter().map(|run| readable(Shown::read(&run.action).map(Item::Shown))).collect()
        }
    })
}
