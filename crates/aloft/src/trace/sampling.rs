//! Which traces are kept. Pure.

use opentelemetry::trace::TraceId;
use opentelemetry_sdk::trace::Sampler;

use crate::config::Tracing;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// Which share of the traces that begin here.
    share: f64,
    /// Whether a caller's own trace is kept as the caller says.
    by_caller: bool,
}

impl Sampling {
    /// What the configuration says, unless the environment says something by the names of the standard.
    pub(crate) fn of(config: &Tracing, variable: impl Fn(&str) -> Option<String>) -> Self {
        let share = variable("OTEL_TRACES_SAMPLER_ARG").and_then(|a| a.parse::<f64>().ok()).unwrap_or(1.0);
        let said = variable("OTEL_TRACES_SAMPLER").unwrap_or_default();
        let (by_caller, name) = match said.strip_prefix("parentbased_") {
            Some(name) => (true, name),
            None => (false, said.as_str()),
        };
        match name {
            "always_on" => Self { share: 1.0, by_caller },
            "always_off" => Self { share: 0.0, by_caller },
            "traceidratio" => Self { share: share.clamp(0.0, 1.0), by_caller },
            _ => Self { share: f64::from(config.sampled.min(100)) / 100.0, by_caller: true },
        }
    }

    /// The same for whoever makes spans.
    pub(crate) fn sampler(self) -> Sampler {
        let own = Sampler::TraceIdRatioBased(self.share);
        if self.by_caller { Sampler::ParentBased(Box::new(own)) } else { own }
    }

    /// Whether a trace that begins here is kept: for the same trace the same on every machine.
    pub(crate) fn keeps(self, trace: TraceId) -> bool {
        let bytes = trace.to_bytes();
        let low = bytes[8..].iter().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        // As many bits as a float holds.
        ((low >> 11) as f64) / ((1u64 << 53) as f64) < self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standards_names_are_understood() {
        let config = |sampled| Tracing { endpoint: None, runs: true, sampled };
        let of = |sampled, name: Option<&str>, arg: Option<&str>| {
            Sampling::of(&config(sampled), |variable| {
                let value = if variable == "OTEL_TRACES_SAMPLER" { name } else { arg };
                value.map(str::to_owned)
            })
        };
        let sampling = |share, by_caller| Sampling { share, by_caller };
        assert_eq!(of(25, None, None), sampling(0.25, true));
        assert_eq!(of(25, Some("always_on"), None), sampling(1.0, false));
        assert_eq!(of(25, Some("parentbased_always_off"), None), sampling(0.0, true));
        assert_eq!(of(25, Some("parentbased_traceidratio"), Some("0.5")), sampling(0.5, true));
        assert_eq!(of(25, Some("traceidratio"), Some("7")), sampling(1.0, false));
        assert_eq!(of(25, Some("jaeger_remote"), None), sampling(0.25, true));
    }

    #[test]
    fn about_the_share_is_kept() {
        let traces = (0..4000u64).map(|n| TraceId::from(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        let kept = |share| traces.clone().filter(|t| Sampling { share, by_caller: true }.keeps(*t)).count();
        assert_eq!((kept(0.0), kept(1.0)), (0, 4000));
        assert!((900..1100).contains(&kept(0.25)), "{}", kept(0.25));
    }
}
