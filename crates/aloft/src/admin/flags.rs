//! How limits, amounts and choices are written on the command line and shown.

use std::str::FromStr;

use aloft_plane::quantity;
use aloft_proto::v1;
use clap::ValueEnum;

/// The word for a limit that is none.
pub(crate) const NONE: &str = "none";

/// A limit: a number, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u32>);

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self(None));
        }
        text.parse().map(|n| Self(Some(n))).map_err(|_| format!("write a number from 0 to {}, or `{NONE}`", u32::MAX))
    }
}

/// A limit as a table shows it.
pub(crate) fn shown_limit(limit: Option<u32>) -> String {
    limit.map_or_else(|| "-".to_owned(), |n| n.to_string())
}

/// What `--max-resources` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cap {
    /// Nothing is capped.
    Nothing,
    /// At most so many bytes; `None` for no cap.
    Memory(Option<u64>),
    /// At most so many thousandths of processors.
    Cpu(Option<u64>),
    /// At most so many accelerators.
    Gpu(Option<u64>),
}

impl FromStr for Cap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == NONE {
            return Ok(Self::Nothing);
        }
        let bad = || format!("write memory=8Gi, cpu=4, gpu=1 or, to lift one, memory={NONE}");
        let (name, amount) = text.split_once('=').ok_or_else(bad)?;
        // In thousandths.
        let amount = match amount.trim() {
            NONE => None,
            amount => Some(quantity::parse(amount).ok_or_else(bad)?),
        };
        let whole = |unit: u128| amount.map(|milli| u64::try_from(milli / unit).map_err(|_| bad())).transpose();
        match name.trim() {
            "memory" => Ok(Self::Memory(whole(1000)?)),
            "cpu" => Ok(Self::Cpu(whole(1)?)),
            "gpu" if amount.is_some_and(|milli| milli % 1000 != 0) => Err("gpu is a whole number".to_owned()),
            "gpu" => Ok(Self::Gpu(whole(1000)?)),
            _ => Err(bad()),
        }
    }
}

impl Cap {
    /// Writes this into `caps`.
    pub(crate) fn apply(&self, caps: &mut v1::ResourceCaps) {
        match self {
            Self::Nothing => *caps = v1::ResourceCaps::default(),
            Self::Memory(bytes) => caps.memory_bytes = *bytes,
            Self::Cpu(milli) => caps.milli_cpu = *milli,
            Self::Gpu(count) => caps.gpu = *count,
        }
    }
}

/// Caps as `--max-resources` takes them: name and amount.
pub(crate) fn shown_caps(caps: &v1::ResourceCaps) -> Vec<(&'static str, String)> {
    let memory = caps.memory_bytes.map(|bytes| ("memory", shown_bytes(bytes)));
    let cpu = caps
        .milli_cpu
        .map(|milli| ("cpu", if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") }));
    let gpu = caps.gpu.map(|count| ("gpu", count.to_string()));
    [memory, cpu, gpu].into_iter().flatten().collect()
}

/// Bytes in the largest unit that loses nothing.
fn shown_bytes(bytes: u64) -> String {
    let units = [(60, "Ei"), (50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    let fits = units.iter().find(|(bits, _)| bytes > 0 && bytes.trailing_zeros() >= *bits);
    fits.map_or_else(|| bytes.to_string(), |(bits, unit)| format!("{}{unit}", bytes >> bits))
}

/// `--priority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Priority {
    /// After the others.
    Low,
    /// As most.
    Medium,
    /// Before the others.
    High,
}

impl Priority {
    pub(crate) fn to_wire(self) -> v1::QueuePriority {
        match self {
            Self::Low => v1::QueuePriority::Low,
            Self::Medium => v1::QueuePriority::Medium,
            Self::High => v1::QueuePriority::High,
        }
    }
}

/// The word of a priority, as the flag takes it.
pub(crate) fn shown_priority(priority: buffa::EnumValue<v1::QueuePriority>) -> &'static str {
    match priority.as_known() {
        Some(v1::QueuePriority::Low) => "low",
        Some(v1::QueuePriority::Medium | v1::QueuePriority::Unspecified) => "medium",
        Some(v1::QueuePriority::High) => "high",
        None => "unknown",
    }
}

/// `--fairness`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fairness {
    /// What has waited longest goes first, whichever run it belongs to.
    Fifo,
    /// Runs take turns.
    RoundRobin,
}

impl Fairness {
    pub(crate) fn to_wire(self) -> v1::QueueFairness {
        match self {
            Self::Fifo => v1::QueueFairness::FirstInFirstOut,
            Self::RoundRobin => v1::QueueFairness::RoundRobin,
        }
    }
}

/// The word of a fairness, as the flag takes it.
pub(crate) fn shown_fairness(fairness: buffa::EnumValue<v1::QueueFairness>) -> &'static str {
    match fairness.as_known() {
        Some(v1::QueueFairness::FirstInFirstOut) => "fifo",
        Some(v1::QueueFairness::RoundRobin | v1::QueueFairness::Unspecified) => "round-robin",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_numbers_or_none() {
        assert_eq!("0".parse(), Ok(Limit(Some(0))));
        assert_eq!("none".parse(), Ok(Limit(None)));
        for wrong in ["", "-1", "4294967296", "many", "1.5"] {
            assert!(wrong.parse::<Limit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn caps_are_shown_as_they_are_written() {
        for text in ["memory=600Mi", "memory=1Gi", "memory=1025", "memory=0", "cpu=2", "cpu=1500m", "cpu=0", "gpu=3"] {
            let mut caps = v1::ResourceCaps::default();
            text.parse::<Cap>().unwrap().apply(&mut caps);
            let shown: Vec<_> =
                shown_caps(&caps).into_iter().map(|(name, amount)| format!("{name}={amount}")).collect();
            assert_eq!(shown, [text]);
        }
        let mut caps = v1::ResourceCaps { memory_bytes: Some(1), milli_cpu: Some(1), ..Default::default() };
        "memory=none".parse::<Cap>().unwrap().apply(&mut caps);
        assert_eq!((caps.memory_bytes, caps.milli_cpu), (None, Some(1)));
        "none".parse::<Cap>().unwrap().apply(&mut caps);
        assert_eq!(caps, v1::ResourceCaps::default());
        for wrong in ["memory", "memory=", "memory=much", "disk=1Gi", "gpu=0.5", "cpu=-1", "memory=99999Ei", ""] {
            assert!(wrong.parse::<Cap>().is_err(), "{wrong}");
        }
    }
}
