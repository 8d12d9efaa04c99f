//! The checks can fail: each deliberate defect is noticed, by the rule it breaks.

use aloft_sim::{
    draw::Hands,
    fault::{Defect, Fault},
    search::{self, Bench},
};

/// Sequences that are played to find one in which a defect breaks its rule. It may break others first.
const SEQUENCES: u64 = 2000;

#[rustfmt::skip]
const EXPECTED: &[(Defect, &str)] = &[
    (Defect::DropsAnEvent, "rule_1_log_is_numbered_without_gaps"),
    (Defect::ReplaysAStaleState, "rule_5_phases_only_advance"),
    (Defect::RevivesTheEnded, "rule_5_terminal_is_final_in_every_view"),
    (Defect::ForgetsAColumn, "rule_1_columns_are_projections_of_the_states"),
    (Defect::AnswersBeforeCommit, "rule_3_acknowledged_survives_restart"),
    (Defect::AnswersAndDoesNothing, "rule_3_views_show_what_was_done"),
    (Defect::LeaksAValue, "rule_7_values_stay_out_of_the_control_plane"),
    (Defect::ForgetsRequests, "rule_4_same_create_changes_nothing"),
    (Defect::GivesNamesTwice, "rule_4_other_work_under_a_taken_name_is_refused"),
    (Defect::GivesNamesTwice, "rule_4_another_kind_under_a_taken_name_is_refused"),
    (Defect::StartsBelowTheEnded, "rule_5_nothing_starts_below_what_has_ended"),
    (Defect::AbortsTheEnded, "rule_5_an_abort_loses_against_an_end"),
    (Defect::ShowsDescendantsLate, "rule_5_abort_shown_on_descendants_at_once"),
    (Defect::TakesStaleReports, "rule_6_a_stale_lease_cannot_write"),
    (Defect::LeasesTwice, "rule_6_one_live_owner"),
    (Defect::Starves, "rule_6_ready_work_is_handed_out"),
    (Defect::ReusesPrefixes, "rule_6_output_prefix_is_never_reused"),
    (Defect::ForgetsRevocations, "rule_6_revocations_reach_the_holder"),
    (Defect::ForgetsHolders, "rule_6_reclaim_names_what_is_held"),
    (Defect::LosesAMessage, "rule_1_a_watch_loses_nothing"),
    (Defect::RepeatsAMessage, "rule_5_phases_never_regress_on_a_stream"),
    (Defect::InventsAMoment, "rule_1_a_stream_follows_the_log"),
    (Defect::LacksAChild, "rule_1_a_snapshot_is_complete"),
    (Defect::MiscountsChildren, "rule_1_children_are_counted"),
    (Defect::SwallowsErrors, "rule_9_a_failure_carries_its_error"),
    (Defect::MumblesErrors, "rule_9_a_refusal_names_its_object"),
    (Defect::OverfillsPages, "rule_10_pages_are_bounded_and_complete"),
    (Defect::ForgetsAttempts, "rule_5_attempts_are_kept"),
    (Defect::Disagrees, "rule_1_views_agree"),
    (Defect::TakesAnySignal, "rule_9_a_value_of_another_kind_is_refused"),
    (Defect::TakesAnySignal, "rule_9_only_conditions_are_signalled"),
    (Defect::SignalsTheEnded, "rule_5_a_signal_loses_against_an_end"),
    (Defect::SignalsTheEnded, "rule_5_a_second_value_is_refused"),
    (Defect::RefusesRepeatedSignals, "rule_4_the_same_signal_changes_nothing"),
    (Defect::DoesNotHear, "rule_3_a_waiting_condition_takes_its_value"),
    (Defect::HidesValues, "rule_3_a_signal_is_shown_with_its_value"),
    (Defect::NamesAnother, "rule_9_a_signal_says_who_gave_it"),
    (Defect::EndsPauses, "rule_5_nothing_but_a_signal_succeeds_a_condition"),
    (Defect::KeepsValuesToItself, "rule_1_a_watch_loses_nothing"),
    (Defect::IgnoresLimits, "rule_6_limits_are_kept"),
    (Defect::PassesBy, "rule_6_what_has_room_does_not_wait"),
    (Defect::OverfillsQueues, "rule_10_a_full_queue_refuses"),
    (Defect::FillsClosedQueues, "rule_10_a_closed_queue_takes_nothing"),
    (Defect::TurnsWorkAway, "rule_3_what_can_be_done_is_done"),
    (Defect::DeletesWork, "rule_10_a_queue_with_work_stays"),
    (Defect::RenamesQueues, "rule_4_another_queue_of_a_taken_name_is_refused"),
    (Defect::ForgetsQueues, "rule_3_views_show_what_was_done"),
    (Defect::KeepsSilent, "rule_9_what_is_held_back_is_shown"),
    (Defect::MumblesWhatIsHeld, "rule_9_what_is_held_back_says_by_what"),
    (Defect::HoldsBackTheFree, "rule_9_nothing_else_is_shown_as_held_back"),
    (Defect::MiscountsQueues, "rule_1_a_queue_says_what_it_holds"),
    (Defect::HitsNothing, "rule_2_a_hit_is_of_what_succeeded_before"),
    (Defect::ComputesTwice, "rule_2_identical_work_is_computed_once"),
    (Defect::ForgetsResults, "rule_2_a_cached_result_stands_in"),
    (Defect::KeepsReservations, "rule_2_who_waits_waits_for_somebody"),
    (Defect::TrustsPointers, "rule_2_only_what_is_cached_stands_in"),
    (Defect::RecoversFromNowhere, "rule_2_what_is_recovered_had_succeeded"),
    (Defect::RecoversNothing, "rule_2_what_succeeded_is_recovered"),
    (Defect::ForgetsForced, "rule_2_forced_actions_run_again"),
    (Defect::HidesRelations, "rule_1_relations_are_seen_both_ways"),
    (Defect::RefusesRepeatedReports, "rule_4_what_was_reported_changes_nothing"),
    (Defect::HearsOfTheEnded, "rule_5_an_end_here_is_the_end"),
    (Defect::HearsOfTheEnded, "rule_5_nothing_is_reported_below_what_has_ended"),
    (Defect::HearsNothing, "rule_3_what_is_reported_is_taken"),
    (Defect::MiscountsReports, "rule_3_views_show_what_was_done"),
    (Defect::MixesExecutions, "rule_4_another_execution_of_a_taken_name_is_refused"),
    (Defect::StartsElsewhere, "rule_6_nothing_starts_here_in_what_runs_elsewhere"),
    (Defect::QueuesElsewhere, "rule_6_no_worker_has_what_runs_elsewhere"),
];

/// How a defect was noticed instead, if its rule was not broken.
fn missed(defect: Defect, rule: &str) -> Option<String> {
    let bench = Bench::new(None).expect("a bench");
    let mut others = Vec::new();
    for seed in 0..SEQUENCES {
        let played = bench.play(&search::sequence(Hands::Ours, seed), Fault::of(defect));
        let broken = played.and_then(|()| if seed % 20 == 19 { bench.close() } else { Ok(()) }).err();
        match broken {
            Some(violation) if violation.rule == rule => return None,
            Some(violation) => others.push(format!("seed {seed}: {violation}")),
            None => {}
        }
    }
    others.truncate(3);
    Some(format!("{defect:?} did not break {rule}, but {others:#?}"))
}

#[test]
fn every_defect_breaks_its_rule() {
    let cores = search::cores();
    let part = |first: usize| {
        let some = EXPECTED.iter().skip(first).step_by(cores);
        search::with_room(|| some.filter_map(|(defect, rule)| missed(*defect, rule)).collect::<Vec<_>>())
    };
    let missed = std::thread::scope(|scope| {
        let parts: Vec<_> = (0..cores).map(|first| scope.spawn(move || part(first))).collect();
        parts.into_iter().flat_map(|part| part.join().expect("a part ends")).collect::<Vec<_>>()
    });
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
