-- A job table as version 1 wrote it. Never edit: every later version must open it.
CREATE TABLE jobs (id INTEGER PRIMARY KEY, entry TEXT NOT NULL);
CREATE TABLE answers (number INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT NOT NULL UNIQUE, answer BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO jobs VALUES (1, '{"record":{"id":1,"revision":4,"name":"orbit","job_path":"/data/orbit.toml","out":"/data/runs","gpus":[0],"state":"stopping","position":0,"submitted_at":1790000000.5,"started_at":1790000001.0,"finished_at":0.0,"attempt":2,"step":70,"steps":2000,"pid":4242,"outcome":""},"order":1,"resume":true,"ending":"stop","due":1790000901.0,"due_signal":"terminate","trainer":{"pid":4242,"start":991,"boot":"9c0f"},"first_seq":12,"oom_kills":0}');
INSERT INTO jobs VALUES (2, '{"record":{"id":2,"revision":1,"name":"style","job_path":"/data/style.toml","out":"/data/runs","gpus":[0,1],"state":"queued","position":1,"submitted_at":1790000002.5,"started_at":0.0,"finished_at":0.0,"attempt":0,"step":0,"steps":1500,"pid":0,"outcome":""},"order":2,"resume":false,"ending":"","due":0.0,"due_signal":"terminate","trainer":null,"first_seq":0,"oom_kills":0,"a_key_of_the_future":1}');
INSERT INTO answers (request, answer) VALUES ('0af3', x'81a474797065a4446f6e65');
INSERT INTO facts VALUES ('boot', '9c0f'), ('paused', '');
PRAGMA user_version=1;
