//! Labels whose values users choose: so many are told apart, and the rest is `other`. Pure.

use std::collections::HashMap;

/// What stands for whatever came too late.
const OTHER: &str = "other";

/// What belongs to each name that is told apart: to those that came first, until the process ends. What is known is found without
/// copying its name.
#[derive(Debug)]
pub(super) struct Names<T> {
    most_places: usize,
    most_tasks: usize,
    /// By project, domain and task: which of `made`.
    known: HashMap<String, HashMap<String, HashMap<String, usize>>>,
    places: usize,
    tasks: usize,
    made: Vec<T>,
}

impl<T> Names<T> {
    /// None yet.
    pub(super) fn new(most_places: usize, most_tasks: usize) -> Self {
        Self { most_places, most_tasks, known: HashMap::new(), places: 0, tasks: 0, made: Vec::new() }
    }

    /// What belongs to a task of a project and domain; `make` makes it of what these three are called.
    pub(super) fn of(&mut self, names: [&str; 3], make: impl FnOnce([&str; 3]) -> T) -> &mut T {
        let index = match self.find(names) {
            Some(index) => index,
            None => self.add(names, make),
        };
        &mut self.made[index]
    }

    fn find(&self, [project, domain, task]: [&str; 3]) -> Option<usize> {
        self.known.get(project)?.get(domain)?.get(task).copied()
    }

    fn add(&mut self, [project, domain, task]: [&str; 3], make: impl FnOnce([&str; 3]) -> T) -> usize {
        let mut called = [project, domain, task];
        let new_place = self.known.get(project).is_none_or(|domains| !domains.contains_key(domain));
        if new_place && self.places >= self.most_places {
            called = [OTHER; 3];
        } else {
            self.places += usize::from(new_place);
            if self.tasks >= self.most_tasks {
                called[2] = OTHER;
            } else {
                self.tasks += 1;
            }
        }
        if let Some(index) = self.find(called) {
            return index;
        }
        let index = self.made.len();
        self.made.push(make(called));
        let [project, domain, task] = called.map(str::to_owned);
        self.known.entry(project).or_default().entry(domain).or_default().insert(task, index);
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_told_apart_and_the_rest_is_other() {
        let mut names = Names::new(2, 3);
        let mut told = |project: &str, task: &str| names.of([project, "d", task], |called| called.join("/")).clone();
        assert_eq!(told("a", "f"), "a/d/f");
        assert_eq!(told("b", "f"), "b/d/f");
        assert_eq!(told("c", "f"), "other/other/other", "a third place");
        assert_eq!(told("a", "g"), "a/d/g");
        assert_eq!(told("a", "h"), "a/d/other", "a fourth task");
        assert_eq!(told("a", "f"), "a/d/f", "what is known stays so");
        assert_eq!(names.made.len(), 5, "and is made once");
        let mut none = Names::new(0, 0);
        assert_eq!(none.of(["a", "d", "f"], |called| called.join("/")), "other/other/other");
    }
}
