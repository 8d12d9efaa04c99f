//! Turns: what only one of the control planes of a store does at a time.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

/// A turn that was taken. Dropping it passes it on.
#[derive(Debug)]
pub struct Turn {
    taken: Instant,
    number: Option<u64>,
    /// Closed by the engine when the turn is lost; the engine passes the turn on when this is dropped. `None` if there is
    /// nobody to pass it to.
    held: Option<watch::Receiver<()>>,
}

impl Turn {
    /// The turn of a store that only one control plane uses.
    pub fn of_one() -> Self {
        Self { taken: Instant::now(), number: None, held: None }
    }

    /// A turn for an engine to hand out, and its end of it: dropped, the turn is lost; closed, it was passed on.
    pub fn taken() -> (Self, watch::Sender<()>) {
        let (ours, held) = watch::channel(());
        (Self { taken: Instant::now(), number: None, held: Some(held) }, ours)
    }

    /// As [`Self::taken`], with a number that nobody's turn has had whose writes may still be on their way.
    pub fn numbered(number: u64) -> (Self, watch::Sender<()>) {
        let (turn, ours) = Self::taken();
        (Self { number: Some(number), ..turn }, ours)
    }

    /// What the store tells by, when something is written in this turn, whether another has had one since. `None` if nobody
    /// else can have one.
    pub fn number(&self) -> Option<u64> {
        self.number
    }

    /// How long ago it was taken.
    pub fn age(&self) -> Duration {
        self.taken.elapsed()
    }

    /// Returns when the turn is lost: another may have it from then on.
    pub async fn lost(&mut self) {
        match &mut self.held {
            Some(held) => while held.changed().await.is_ok() {},
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_is_passed_on_or_lost() {
        let (mut turn, engine) = Turn::taken();
        assert!(!engine.is_closed());
        drop(engine);
        turn.lost().await;
        let (turn, engine) = Turn::taken();
        drop(turn);
        engine.closed().await;
    }
}
