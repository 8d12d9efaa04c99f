//! What runs are created by.

use super::*;

fn scope() -> Scope {
    key("r").scope
}

fn domain(id: &str) -> Domain {
    Domain { org: "local".into(), id: id.into(), name: id.into(), created_at: Time::from_micros(7) }
}

fn project(state: i32) -> Project {
    Project { org: "local".into(), id: "p".into(), state, ..Project::default() }
}

fn settings(domain: &str, version: u64) -> SettingsVersion {
    SettingsVersion {
        key: SettingsKey { org: "local".into(), domain: domain.into(), project: String::new() },
        version,
        body: Bytes::from(format!("{domain} {version}")),
        edited_at: Time::from_micros(1),
        edited_by: Subject::default(),
        request: String::new(),
    }
}

/// A run that is made by what was read at `revision`.
fn made_at(name: &str, revision: u64) -> Submission {
    Submission { site_revision: Some(revision), ..create(&key(name), "d") }
}

pub(super) async fn a_run_is_created_by_what_is_there(store: Handle) {
    let site = async || store.site(&scope()).await.unwrap();
    let empty = site().await;
    assert_eq!((empty.project.clone(), empty.domains.len(), empty.settings.len()), (None, 0, 0));
    assert_eq!(site().await, empty, "reading changes nothing");
    ok(&store, made_at("first", empty.revision)).await;
    assert_eq!(site().await, empty, "nor does a run");

    // Whatever changes one of them, here or elsewhere, makes what was read before it outdated.
    let mut known = empty.revision;
    let mut changes: Vec<(&str, bool)> = Vec::new();
    macro_rules! change {
        ($what:literal, $changed:expr) => {
            changes.push(($what, $changed.await.unwrap()));
            let now = site().await;
            assert!(now.revision > known, "{}", $what);
            let refused = store.submit(made_at($what, known)).await;
            assert_eq!(refused, Err(Refusal::Outdated.into()), "{}", $what);
            assert!(store.run(&key($what)).await.unwrap().is_none(), "{}: nothing came of it", $what);
            ok(&store, made_at($what, now.revision)).await;
            known = now.revision;
        };
    }
    change!("project", store.create_project(project(0)));
    change!("archived", store.update_project(project(1)));
    change!("domains", store.seed_domains("local", vec![domain("development"), domain("production")]));
    change!("domain", store.create_domain(domain("a")));
    change!("renamed", store.rename_domain("local", "a", "The A"));
    change!("deleted", store.delete_domain("local", "a"));
    change!("settings", store.put_settings(settings("", 1)));
    change!("more", store.put_settings(settings("development", 1)));
    change!("again", store.put_settings(settings("", 2)));
    change!("elsewhere", store.put_settings(settings("production", 1)));
    assert!(changes.iter().all(|(_, changed)| *changed), "{changes:?}");

    let now = site().await;
    assert_eq!(now.revision, known, "reading and running change nothing");
    assert_eq!(now.project, Some(project(1)));
    assert_eq!(now.domains, [domain("development"), domain("production")]);
    assert_eq!(now.settings, [settings("", 2), settings("development", 1)], "widest first, and of this place only");
    let nowhere = store.site(&Scope::new("other", "p", "development").unwrap()).await.unwrap();
    assert_eq!((nowhere.project, nowhere.domains.len(), nowhere.settings.len()), (None, 0, 0));

    // Of several in one commit, each is decided by itself; and who does not say is not asked.
    let (old, new, silent) = tokio::join!(
        store.submit(made_at("old", empty.revision)),
        store.submit(made_at("new", now.revision)),
        store.submit(create(&key("silent"), "d")),
    );
    assert_eq!(old, Err(Refusal::Outdated.into()));
    assert!(new.is_ok() && silent.is_ok());
    // A run that is there already is refused no less: it is looked at with what is there now.
    assert_eq!(store.submit(made_at("new", empty.revision)).await, Err(Refusal::Outdated.into()));
    assert_eq!(ok(&store, made_at("new", now.revision)).await, Reply::Unchanged);
}
