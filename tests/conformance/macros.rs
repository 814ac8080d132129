//! Expands the suite for one runtime.

/// Makes one test per promise for a [`Harness`](crate::harness::Harness), under the given test attribute:
/// `conformance!(Docker, tokio::test(flavor = "multi_thread"));`
macro_rules! conformance {
    ($harness:ty, $test:meta) => {
        conformance!(@suite $harness, [$test],
            life: new_machine_has_nothing, created_is_listed_and_does_not_run,
                inspecting_tells_what_a_list_tells, creating_twice_gives_the_same_instance,
                identity_and_counters_come_back, starting_runs, starting_twice_is_success, starting_unknown_is_not_found,
                starting_again_after_exit_runs, exit_codes_are_told, signals_are_told, kills_for_want_of_memory_are_told,
                times_are_in_order,
                stop_ends_a_polite_program_within_its_grace, stop_kills_a_stubborn_program_after_its_grace,
                stop_without_grace_kills_at_once, stop_of_exited_changes_nothing, stop_of_created_is_success,
                stop_of_gone_is_success, stopping_twice_at_once_is_success, remove_of_running_kills,
                remove_of_created_and_exited, remove_of_gone_is_success, missing_program_is_rejected,
                five_at_once, replacement_lives_beside_its_predecessor;
            ownership: second_handle_sees_the_same, ended_instances_are_told_apart_by_a_new_handle,
                cause_of_a_stop_is_told_by_a_new_handle, run_after_a_stop_has_an_end_of_its_own,
                stranger_sees_nothing, stranger_can_not_touch, stranger_with_the_same_names_does_no_harm;
            usage: usage_is_told_while_it_runs, usage_of_what_does_not_run_is_rejected, paused_stands_still_until_resumed,
                pausing_what_does_not_run_is_rejected, paused_is_stopped_in_its_grace, paused_is_removed;
            dial: dial_reaches_what_listens, dial_where_nothing_listens_fails, dial_of_unknown_is_not_found;
            output: logs_of_ended_in_order, logs_tail, logs_of_a_long_line_have_every_byte,
                logs_are_the_bytes_that_were_written, logs_follow_until_the_end, logs_follow_stops_when_dropped,
                logs_of_unknown_is_not_found, environment_reaches_the_process, exec_tells_code_and_output,
                exec_reads_input, exec_sees_environment, exec_of_empty_is_rejected, exec_tells_missing_from_unexecutable,
                exec_of_not_running_is_rejected, exec_of_unknown_is_not_found;
            shared: events_tell_start_and_exit, events_tell_removal, events_reach_every_handle, teardown_removes_and_repeats,
                teardown_leaves_others, present_image_is_success, missing_image_is_unavailable,
                missing_image_can_not_be_created, unsupported_transport_is_named, capabilities_are_told;
        );
    };
    (@suite $harness:ty, $test:tt, $($module:ident: $($name:ident),+;)+) => {
        $($(conformance!(@test $harness, $test, $module, $name);)+)+
    };
    (@test $harness:ty, [$test:meta], $module:ident, $name:ident) => {
        #[$test]
        async fn $name() {
            let Some(harness) = crate::harness::open::<$harness>(stringify!($name)).await else { return };
            let outcome = {
                let promise = crate::$module::$name(&harness);
                futures::FutureExt::catch_unwind(std::panic::AssertUnwindSafe(promise)).await
            };
            crate::harness::close(harness).await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        }
    };
}
