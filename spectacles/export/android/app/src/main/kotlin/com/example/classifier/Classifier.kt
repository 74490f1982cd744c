package com.example.classifier

import android.content.Context
import android.graphics.ImageDecoder
import org.json.JSONObject
import org.tensorflow.lite.Interpreter
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel

/** The model of assets/: from a photo to each class's probability. */
class Classifier(context: Context) {
    private val classes = context.assets.open("labels.txt").bufferedReader().readLines()
    private val metadata = JSONObject(context.assets.open("metadata.json").bufferedReader().readText())
    private val facts = JSONObject(metadata.getString("preprocessing"))
    private val size = facts.getInt("image_size")
    private val preprocessing =
        Preprocessing(size, facts.getString("resize"), facts.getString("interpolation"), facts.getInt("in_chans") == 1)
    private val interpreter = Interpreter(
        context.assets.openFd("model.tflite").use { file ->
            FileInputStream(file.fileDescriptor).channel.map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
        },
    )

    fun probabilities(photo: ImageDecoder.Source): Map<String, Float> {
        val answers = arrayOf(FloatArray(classes.size))
        interpreter.run(ByteBuffer.wrap(preprocessing.apply(decoded(photo)).bytes), answers)
        return classes.zip(answers[0].asIterable()).toMap()
    }

    /** Upright. Large photos are read at a half, a quarter or an eighth of their size. */
    private fun decoded(photo: ImageDecoder.Source): Pixels {
        val bitmap = ImageDecoder.decodeBitmap(photo) { decoder, info, _ ->
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
            val shorter = minOf(info.size.width, info.size.height)
            decoder.setTargetSampleSize(listOf(8, 4, 2).firstOrNull { shorter / it >= 2 * size } ?: 1)
        }
        val pixels = IntArray(bitmap.width * bitmap.height)
        bitmap.getPixels(pixels, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
        val rgb = ByteArray(3 * pixels.size) { (pixels[it / 3] shr (16 - 8 * (it % 3))).toByte() }
        return Pixels(bitmap.width, bitmap.height, 3, rgb)
    }
}
