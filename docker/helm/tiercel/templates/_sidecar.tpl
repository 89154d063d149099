{{/* For other charts, with this one as a dependency: a native sidecar in front of a Redis. In the pod of your template:

  initContainers:
    {{- include "tiercel.sidecar.container" (dict "values" .Values.tiercel "version" "0.1.0") | nindent 8 }}
  volumes:
    {{- include "tiercel.sidecar.volumes" (dict "values" .Values.tiercel) | nindent 8 }}

The pod wants securityContext.fsGroup 999, enableServiceLinks false and a terminationGracePeriodSeconds for the application and then
this. There is no preStop: it would run when the pod's end begins, while the application still needs its cache. */}}
{{- define "tiercel.sidecar.container" -}}
{{- $v := .values -}}
- name: tiercel
  image: {{ printf "%s:%s" $v.image.repository (default .version $v.image.tag) }}
  imagePullPolicy: {{ $v.image.pullPolicy }}
  restartPolicy: Always
  env:
    - name: TIERCEL_UPSTREAM
      value: {{ required "upstream.url is missing, such as redis://redis:6379/0" $v.upstream.url | quote }}
    {{- if $v.upstream.existingSecret }}
    - name: TIERCEL_UPSTREAM_AUTH_FILE
      value: /etc/tiercel/upstream/{{ $v.upstream.authKey }}
    {{- end }}
    - name: TIERCEL_BIND
      value: 127.0.0.1 -::1
    - name: TIERCEL_HTTP_PORT
      value: {{ int $v.http.port | quote }}
    - name: TIERCEL_SHUTDOWN_TIMEOUT
      value: {{ int $v.shutdownTimeoutSeconds | quote }}
    {{- range $name, $value := $v.config }}
    {{- if or (kindIs "slice" $value) (eq $name "rule") }}
    {{- fail (printf "config.%s: a sidecar has its settings from the environment, where there are no lists and no rules" $name) }}
    {{- end }}
    - name: {{ printf "TIERCEL_%s" ($name | upper | replace "-" "_") }}
      value: {{ include "tiercel.setting" $value | quote }}
    {{- end }}
    {{- with $v.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $http := dict "expose" false }}
  {{- include "tiercel.probes" (dict "Values" (dict "http" $http "startupSeconds" $v.startupSeconds)) | nindent 2 }}
  resources:
    {{- toYaml $v.resources | nindent 4 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 999
    runAsGroup: 999
    seccompProfile:
      type: RuntimeDefault
    {{- include "tiercel.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - name: tiercel-data
      mountPath: /data
    {{- if $v.upstream.existingSecret }}
    - name: tiercel-upstream
      mountPath: /etc/tiercel/upstream
      readOnly: true
    {{- end }}
{{- end -}}

{{- define "tiercel.sidecar.volumes" -}}
{{- $v := .values -}}
- name: tiercel-data
  emptyDir:
    sizeLimit: {{ $v.persistence.emptyDirSizeLimit }}
{{- if $v.upstream.existingSecret }}
- name: tiercel-upstream
  secret:
    secretName: {{ $v.upstream.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end -}}
