//! The roster, over looks at instances that come and go.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::place::{Bookmark, Key};
use super::roster::{Look, MOST_OPEN, Opening, Roster, Trouble, key};
use crate::runtime::RuntimeError;
use crate::runtime::io::{LogLine, LogOptions, OutputStream};
use crate::spec::RuntimeKind;
use crate::state::{ErrorKind, Exit, Instance, InstanceId, Phase};

const SECOND: Duration = Duration::from_secs(1);

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_000_000 + second, 0).unwrap()
}

/// An instance that runs. The begin of following is second 100.
fn runs(slot: u32, attempt: u32, created: i64) -> Instance {
    let id = InstanceId {
        deployment: "demo".to_owned(),
        service: "web".to_owned(),
        slot,
        revision: "v1-aa00000000000000".parse().unwrap(),
        attempt,
        run: None,
    };
    let phase = Phase::Running { since: at(created), ready: true };
    let runtime_id = format!("{slot}.{attempt}");
    Instance { runtime_id, restarts: attempt, ..Instance::new(id, RuntimeKind::Sim, phase, at(created)) }
}

fn dead(instance: &Instance) -> Instance {
    let exit = Exit::from_code(1, None, instance.created_at);
    Instance { phase: Phase::Exited(exit), ..instance.clone() }
}

fn created(instance: &Instance) -> Instance {
    Instance { phase: Phase::Created, ..instance.clone() }
}

fn roster(tail: Option<u64>) -> Roster {
    Roster::new(LogOptions { tail, follow: false, since: None }, at(100))
}

fn line(second: i64) -> LogLine {
    LogLine { at: at(second), stream: OutputStream::Stdout, text: "x".into(), goes_on: false }
}

/// What is opened: runtime id, tail, since.
type Opened<'a> = (&'a str, Option<u64>, Option<DateTime<Utc>>);

fn opened(look: &Look) -> Vec<Opened<'_>> {
    let of = |opening: &Opening| {
        assert!(opening.options.follow);
        (opening.options.tail, opening.options.since)
    };
    look.open.iter().map(|opening| (opening.instance.runtime_id.as_str(), of(opening).0, of(opening).1)).collect()
}

#[test]
fn everything_that_lives_is_read_and_the_newest_dead_of_a_slot_in_which_nothing_does() {
    let mut roster = roster(Some(5));
    let (old, outgoing, new) = (dead(&runs(0, 0, 1)), runs(0, 1, 2), runs(0, 2, 3));
    let crashed = [dead(&runs(1, 0, 4)), dead(&runs(1, 1, 5))];
    let look = roster.look(&[old, outgoing, new, crashed[0].clone(), crashed[1].clone()], Instant::now());
    assert_eq!(opened(&look), [("0.1", Some(5), None), ("0.2", Some(5), None), ("1.1", Some(5), None)]);
}

#[test]
fn of_instances_created_in_the_same_instant_the_later_attempt_is_the_newer() {
    let mut roster = roster(None);
    let at_once = [runs(0, 2, 1), runs(0, 1, 1), dead(&runs(1, 1, 1)), dead(&runs(1, 0, 1))];
    let look = roster.look(&at_once, Instant::now());
    assert_eq!(opened(&look), [("0.1", None, None), ("0.2", None, None), ("1.1", None, None)]);
}

#[test]
fn a_replacement_is_read_from_its_first_line_once_it_has_started() {
    let (mut roster, now) = (roster(Some(5)), Instant::now());
    let (first, second) = (runs(0, 0, 1), runs(0, 1, 101));
    roster.look(std::slice::from_ref(&first), now);
    assert_eq!(opened(&roster.look(&[first.clone(), created(&second)], now)), []);
    assert_eq!(opened(&roster.look(&[first.clone(), second.clone()], now)), [("0.1", None, None)]);
    assert_eq!(opened(&roster.look(&[first, second], now)), [], "each is opened once");
}

#[test]
fn what_existed_before_and_is_seen_late_is_asked_for_its_last_lines_alone() {
    let (mut roster, now) = (roster(Some(5)), Instant::now());
    roster.look(&[], now);
    assert_eq!(opened(&roster.look(&[runs(0, 0, 1)], now)), [("0.0", Some(5), None)]);
    // Created before and started after.
    let late = Instance { created_at: at(1), ..runs(2, 0, 101) };
    assert_eq!(opened(&roster.look(&[runs(0, 0, 1), late], now)), [("2.0", None, None)]);
    // A list may tell the second alone in which it was started.
    assert_eq!(opened(&roster.look(&[runs(0, 0, 1), runs(1, 0, 99)], now)), [("1.0", None, None)]);
}

#[test]
fn a_replacement_waits_for_the_last_lines_of_a_dead_one_and_not_for_ever() {
    let (mut roster, now) = (roster(None), Instant::now());
    let (first, second) = (runs(0, 0, 1), runs(0, 1, 101));
    roster.look(&[first.clone(), runs(1, 0, 1)], now);
    let both = [dead(&first), second.clone(), runs(1, 0, 1)];
    let look = roster.look(&both, now);
    assert_eq!((opened(&look), look.again), (vec![], Some(now + 5 * SECOND)));
    roster.line(&key(&first), &line(1), now + 4 * SECOND);
    let look = roster.look(&both, now + 5 * SECOND);
    assert_eq!((opened(&look), look.again), (vec![], Some(now + 9 * SECOND)), "it still tells lines");
    roster.ended(&key(&first), now + 6 * SECOND);
    assert_eq!(opened(&roster.look(&both, now + 6 * SECOND)), [("0.1", None, None)]);

    let mut silent = self::roster(None);
    silent.look(std::slice::from_ref(&first), now);
    silent.look(&both[..2], now);
    assert_eq!(opened(&silent.look(&both[..2], now + 5 * SECOND)), [("0.1", None, None)]);
    let look = silent.look(&both[..2], now + 30 * SECOND);
    assert_eq!(look.close, [key(&first)], "an end that is never told");
}

#[test]
fn the_output_of_what_is_gone_is_not_waited_for_as_long() {
    let (mut roster, now) = (roster(None), Instant::now());
    let instance = runs(0, 0, 1);
    roster.look(std::slice::from_ref(&instance), now);
    let look = roster.look(&[], now);
    assert_eq!((look.close, look.again), (vec![], Some(now + 5 * SECOND)));
    roster.line(&key(&instance), &line(1), now + 4 * SECOND);
    assert_eq!(roster.look(&[], now + 5 * SECOND).again, Some(now + 9 * SECOND), "it still tells lines");
    assert_eq!(roster.look(&[], now + 9 * SECOND).close, [key(&instance)]);
    assert!(!roster.is_reading(&[]));
}

#[test]
fn a_replacement_does_not_wait_for_one_that_still_runs() {
    let (mut roster, now) = (roster(None), Instant::now());
    let (first, second) = (runs(0, 0, 1), runs(0, 1, 101));
    roster.look(std::slice::from_ref(&first), now);
    assert_eq!(opened(&roster.look(&[first, second], now)), [("0.1", None, None)]);
}

/// The lines of these times that are new.
fn new_lines(roster: &mut Roster, key: &Key, seconds: &[i64], now: Instant) -> Vec<bool> {
    seconds.iter().map(|second| roster.line(key, &line(*second), now)).collect()
}

#[test]
fn an_output_that_broke_off_is_taken_up_where_it_was_left() {
    let (mut roster, now) = (roster(Some(2)), Instant::now());
    let instance = runs(0, 0, 1);
    let key = key(&instance);
    roster.look(std::slice::from_ref(&instance), now);
    assert_eq!(new_lines(&mut roster, &key, &[7, 8, 8], now), [true, true, true]);
    let gone = RuntimeError::new(ErrorKind::Unavailable, "it went away");
    assert_eq!(roster.failed(&key, &gone, now), Trouble::Passing);
    assert!(roster.is_reading(&[dead(&instance)]), "nothing else is waited for");
    let look = roster.look(std::slice::from_ref(&instance), now);
    assert_eq!((opened(&look), look.again), (vec![], Some(now + SECOND)));
    let later = now + SECOND;
    assert_eq!(opened(&roster.look(std::slice::from_ref(&instance), later)), [("0.0", None, Some(at(8)))]);
    assert_eq!(roster.failed(&key, &gone, later), Trouble::Silent, "it is told once");
    assert_eq!(roster.look(&[dead(&instance)], later).again, Some(later + 2 * SECOND));
    // It died meanwhile, and what it wrote until then is read all the same.
    assert_eq!(opened(&roster.look(&[dead(&instance)], later + 2 * SECOND)), [("0.0", None, Some(at(8)))]);
    assert_eq!(new_lines(&mut roster, &key, &[8, 8, 8, 9], later), [false, false, true, true]);
    assert_eq!(roster.failed(&key, &gone, later), Trouble::Passing, "it was fine in between");
}

#[test]
fn an_output_without_lines_is_read_on_from_its_first_one() {
    for (tail, since) in [(Some(0), Some(at(100))), (Some(3), None), (None, None)] {
        let (mut roster, now) = (roster(tail), Instant::now());
        let instance = runs(0, 0, 1);
        roster.look(std::slice::from_ref(&instance), now);
        assert!(roster.ended(&key(&instance), now), "no line was there");
        assert_eq!(opened(&roster.look(std::slice::from_ref(&instance), now + SECOND)), [("0.0", None, since)]);
        assert!(!roster.no_lines(&key(&instance)), "it is told once");
        let gone = RuntimeError::new(ErrorKind::Unavailable, "it went away");
        roster.failed(&key(&instance), &gone, now + SECOND);
        assert_eq!(opened(&roster.look(&[instance], now + 2 * SECOND)), [("0.0", None, since)], "{tail:?}");
    }
}

#[test]
fn an_output_that_could_not_be_opened_begins_as_it_was_asked_for() {
    for (tail, again, since) in [(Some(0), None, Some(at(100))), (Some(3), Some(3), None), (None, None, None)] {
        let (mut roster, now) = (roster(tail), Instant::now());
        let instance = runs(0, 0, 1);
        roster.look(std::slice::from_ref(&instance), now);
        let gone = RuntimeError::new(ErrorKind::Unavailable, "it does not answer");
        roster.failed(&key(&instance), &gone, now);
        assert_eq!(opened(&roster.look(&[instance], now + SECOND)), [("0.0", again, since)], "{tail:?}");
    }
}

#[test]
fn an_instance_that_is_started_again_is_read_on() {
    let (mut roster, now) = (roster(None), Instant::now());
    let instance = runs(0, 0, 1);
    roster.look(std::slice::from_ref(&instance), now);
    new_lines(&mut roster, &key(&instance), &[5], now);
    roster.ended(&key(&instance), now);
    let look = roster.look(&[dead(&instance)], now + 60 * SECOND);
    assert_eq!((opened(&look), look.again), (vec![], None));
    assert!(!roster.is_reading(&[dead(&instance)]));
    assert!(roster.is_reading(std::slice::from_ref(&instance)), "it is about to be opened");
    assert_eq!(opened(&roster.look(&[instance], now + 60 * SECOND)), [("0.0", None, Some(at(5)))]);
}

#[test]
fn what_can_not_be_read_is_told_and_given_up() {
    let (mut roster, now) = (roster(None), Instant::now());
    let (instance, gone) = (runs(0, 0, 1), runs(1, 0, 1));
    roster.look(&[instance.clone(), gone.clone()], now);
    let refused = RuntimeError::new(ErrorKind::Rejected, "this log driver can't be read");
    assert_eq!(roster.failed(&key(&instance), &refused, now), Trouble::Lasting);
    let missing = RuntimeError::new(ErrorKind::NotFound, "it was removed");
    assert_eq!(roster.failed(&key(&gone), &missing, now), Trouble::Silent);
    let look = roster.look(std::slice::from_ref(&instance), now + 60 * SECOND);
    assert_eq!((look, roster.is_reading(&[instance])), (Look::default(), false));
}

#[test]
fn no_more_than_so_many_are_open_and_the_others_as_soon_as_there_is_room() {
    let (mut roster, now) = (roster(Some(5)), Instant::now());
    let most = u32::try_from(MOST_OPEN).unwrap();
    let mut all: Vec<Instance> = (0..=most).map(|slot| runs(slot, 0, 1)).collect();
    let last = format!("{most}.0");
    let look = roster.look(&all, now);
    assert_eq!((look.open.len(), look.refused), (MOST_OPEN, vec![all.last().unwrap().id.clone()]));
    assert_eq!(roster.look(&all, now), Look::default(), "it is told once");
    // A newer one does not take its place.
    all.push(runs(most + 1, 0, 101));
    let gone = key(&all.remove(0));
    roster.ended(&gone, now);
    let look = roster.look(&all, now);
    assert_eq!(opened(&look), [(last.as_str(), Some(5), None)]);
    assert_eq!(look.refused, [all.last().unwrap().id.clone()]);
    // What broke off holds nothing open, and finds no room either once another took it.
    let broken = key(&all[0]);
    let error = RuntimeError::new(ErrorKind::Unavailable, "it went away");
    roster.line(&broken, &line(7), now);
    roster.failed(&broken, &error, now);
    let next = format!("{}.0", most + 1);
    assert_eq!(opened(&roster.look(&all, now)), [(next.as_str(), None, None)]);
    let look = roster.look(&all, now + SECOND);
    assert_eq!((opened(&look), &look.refused), (vec![], &vec![all[0].id.clone()]));
    let gone = key(&all.remove(1));
    roster.ended(&gone, now + SECOND);
    assert_eq!(opened(&roster.look(&all, now + SECOND)), [(broken.1.as_str(), None, Some(at(7)))]);
    assert!(!roster.line(&broken, &line(7), now + SECOND), "it was given before");
}

#[test]
fn without_room_and_without_old_lines_wanted_all_later_ones_are_read() {
    let (mut roster, now) = (roster(Some(0)), Instant::now());
    let most = u32::try_from(MOST_OPEN).unwrap();
    let mut all: Vec<Instance> = (0..=most).map(|slot| runs(slot, 0, 1)).collect();
    roster.look(&all, now);
    let gone = key(&all.remove(0));
    roster.ended(&gone, now);
    assert_eq!(opened(&roster.look(&all, now)), [(format!("{most}.0").as_str(), None, Some(at(100)))]);
}

/// A bookmark of a follower that began in second 100 and read these lines.
fn bookmark(lines: &[(&Instance, i64)]) -> Bookmark {
    let mut bookmark = Bookmark::new(at(100));
    for (instance, second) in lines {
        bookmark.line(&instance.id.name(), instance.runtime, &instance.runtime_id, at(*second));
    }
    bookmark
}

#[test]
fn after_a_bookmark_every_output_goes_on_where_it_was_left() {
    let now = Instant::now();
    let (first, second, later) = (runs(0, 0, 1), runs(1, 0, 1), runs(2, 0, 110));
    let left = bookmark(&[(&first, 105), (&first, 105), (&second, 90)]);
    let mut roster = Roster::resume(LogOptions { tail: Some(5), follow: true, since: None }, &left);
    let look = roster.look(&[dead(&first), second, later], now);
    let expected = [("0.0", None, Some(at(105))), ("1.0", None, Some(at(90))), ("2.0", None, None)];
    assert_eq!(opened(&look), expected);
    assert_eq!(new_lines(&mut roster, &key(&first), &[105, 105, 105, 106], now), [false, false, true, true]);
}

/// What a follower opens after this bookmark.
fn opened_after(
    bookmark: &Bookmark,
    tail: Option<u64>,
    all: &[Instance],
) -> Vec<(String, Option<u64>, Option<DateTime<Utc>>)> {
    let mut roster = Roster::resume(LogOptions { tail, follow: true, since: None }, bookmark);
    let look = roster.look(all, Instant::now());
    opened(&look).into_iter().map(|(id, tail, since)| (id.to_owned(), tail, since)).collect()
}

#[test]
fn after_a_bookmark_what_had_no_lines_is_read_from_when_following_began() {
    let silent = runs(0, 0, 1);
    let mut left = bookmark(&[]);
    left.no_lines(&silent.id.name(), silent.runtime, &silent.runtime_id);
    let of = |tail| opened_after(&left, tail, std::slice::from_ref(&silent));
    let read = |since| vec![("0.0".to_owned(), None, since)];
    assert_eq!(of(Some(5)), read(Some(at(100))));
    assert_eq!(of(Some(0)), read(Some(at(100))));
    assert_eq!(of(None), read(None));
}

#[test]
fn after_a_bookmark_what_was_not_opened_is_read_as_it_was_asked_for() {
    let unread = runs(0, 0, 1);
    let of = |tail| opened_after(&bookmark(&[]), tail, std::slice::from_ref(&unread));
    let read = |tail, since| vec![("0.0".to_owned(), tail, since)];
    assert_eq!(of(Some(5)), read(Some(5), None));
    assert_eq!(of(Some(0)), read(None, Some(at(100))));
    assert_eq!(of(None), read(None, None));
}

#[test]
fn after_a_bookmark_what_died_since_following_began_is_read_before_its_replacement() {
    let replacement = runs(0, 1, 150);
    let died = |second| Instance { phase: Phase::Exited(Exit::from_code(1, Some(at(1)), at(second))), ..runs(0, 0, 1) };
    let of = |all: &[Instance]| opened_after(&bookmark(&[]), None, all);
    // It was left out then; or it left words that nobody has read.
    assert_eq!(of(&[died(50), replacement.clone()]), [("0.1".to_owned(), None, None)]);
    assert_eq!(of(&[died(149), replacement]), [("0.0".to_owned(), None, None)]);
}
